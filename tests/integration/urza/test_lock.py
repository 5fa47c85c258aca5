"""The second lock is enough for the service: in an environment of nothing else it starts, answers, and knows no torch."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from esper.testing.server import free_port

ROOT = Path(__file__).parents[3]
PROBE = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('fastapi') is not None)"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the second lock and this project."""
    folder = tmp_path_factory.mktemp("service")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    found = folder / "bin" / "python"
    pip = [found, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", ROOT / "requirements-urza.lock"], check=True)
    subprocess.run(
        [*pip, "hatchling", "editables"], check=True
    )  # what builds the project, and is no part of the service
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", ROOT], check=True)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_service_runs_on_its_lock_without_torch(python: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    probed = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True, cwd=tmp_path, env=clean)
    assert probed.stdout.split() == ["None", "True"]
    port = free_port()
    command = [python.parent / "esper", "serve", "urza", "--port", str(port), "--root", str(tmp_path / "library")]
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=clean)
    try:
        ends_at = time.monotonic() + 60
        while True:
            assert time.monotonic() < ends_at and service.poll() is None, (tmp_path / "log").read_text()  # noqa: PT018
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                time.sleep(0.1)
        service.terminate()
        assert service.wait(30) == 0
    finally:
        service.kill()
        service.wait(10)
