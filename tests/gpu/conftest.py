"""The device that the laws are held against, and the record of what came of it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.laws.training import stock

RESULTS = Path(__file__).parent / "results"


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Return the device; the tests themselves can be tried with ``--device cpu`` where there is no other."""
    chosen: str = request.config.getoption("--device")
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    return chosen


@pytest.fixture(autouse=True, scope="session")
def deterministic() -> Iterator[None]:
    """Let equal mean equal to the bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs with a library that has every kernel of the zoo."""
    return stock(tmp_path_factory.mktemp("runs"))


OUTCOMES: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what came of each test."""
    if "tests/gpu/" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        OUTCOMES[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the outcomes down, where a CUDA device was used."""
    if not OUTCOMES or not torch.cuda.is_available() or not session.config.getoption("--device").startswith("cuda"):
        return
    name = torch.cuda.get_device_name()
    RESULTS.mkdir(exist_ok=True)
    found = {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "outcomes": dict(sorted(OUTCOMES.items())),
    }
    (RESULTS / f"{name.lower().replace(' ', '-')}.json").write_text(
        json.dumps(found, indent=1) + "\n", encoding="utf-8"
    )
