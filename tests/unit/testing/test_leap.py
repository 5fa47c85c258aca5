"""A process sees its time of day jump, forward and back, and its monotonic time go on."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esper.errors import NotFound
from esper.testing.leap import LeapingClock

TELL = """
import sys, time
from datetime import UTC, datetime
for _ in sys.stdin:
    print(time.time(), datetime.now(UTC).timestamp(), time.monotonic(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a library that is loaded first is a Linux thing")
def test_the_time_of_day_leaps_and_monotonic_time_does_not(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no C compiler here")
    clock = LeapingClock(tmp_path)
    with subprocess.Popen(
        [*clock.wrapper, sys.executable, "-c", TELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for leap, shift in ((0.0, 0.0), (3600.25, 3600.25), (-7200.5, -3600.25), (3600.25, 0.0)):
            clock.leap(leap)
            before, began = time.time(), time.monotonic()
            child.stdin.write("\n")
            of_day, of_day_again, monotonic = map(float, child.stdout.readline().split())
            after, ended = time.time(), time.monotonic()
            assert before - 0.01 <= of_day - shift <= of_day_again - shift + 0.001 <= after + 0.01
            assert began <= monotonic <= ended
        child.stdin.close()


def test_a_machine_without_a_compiler_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotFound, match="no C compiler"):
        LeapingClock(tmp_path)
