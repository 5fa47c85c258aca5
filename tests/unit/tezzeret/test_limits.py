"""A child cannot take more of the machine than it may."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, resource, sys
from esper.services.tezzeret.limits import limit_job, limit_process

base_mb = limit_process(64)
told = {"base_mb": base_mb}
try:
    bytearray(256 * 2**20)
except MemoryError:
    told["memory"] = "refused"
held = bytearray(32 * 2**20)
try:
    with open(sys.argv[1], "wb") as file:
        file.write(b"x")
except OSError as error:
    told["file"] = error.strerror
try:
    opened = [open("/dev/null") for _ in range(100)]
except OSError as error:
    told["files"] = error.strerror
told["core"] = resource.getrlimit(resource.RLIMIT_CORE)
try:
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
except ValueError:
    told["lifted"] = "refused"
limit_job(2.0)
told["cpu_s"] = resource.getrlimit(resource.RLIMIT_CPU)[0]
limit_job(20.0)
told["later_cpu_s"] = resource.getrlimit(resource.RLIMIT_CPU)[0]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    target = tmp_path_factory.mktemp("limits") / "written"
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(target)], capture_output=True, text=True, check=True)
    assert not Path(target).exists() or Path(target).stat().st_size == 0
    found = json.loads(run.stdout)
    assert isinstance(found, dict)
    return found


def test_memory_is_limited_above_what_the_interpreter_takes(told: dict[str, object]) -> None:
    assert told["memory"] == "refused"
    assert isinstance(told["base_mb"], int)
    assert told["base_mb"] > 0


def test_nothing_can_be_written_and_few_files_opened(told: dict[str, object]) -> None:
    assert told["file"] == "File too large"
    assert told["files"] == "Too many open files"
    assert told["core"] == [0, 0]


def test_processor_time_is_limited_job_by_job(told: dict[str, object]) -> None:
    assert told["cpu_s"] in (8, 9)
    assert told["later_cpu_s"] in (26, 27)
