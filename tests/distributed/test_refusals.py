"""What cannot grow on several ranks is refused before anything is started; and the example runs as it is printed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launching import ROOT, environment, results


@pytest.mark.slow
def test_what_cannot_grow_on_several_ranks_is_refused(tmp_path: Path) -> None:
    for found in results("refusals.refused", tmp_path):
        assert found == {
            "bare": "ESP-2141", "incubate": "ESP-2145", "zero": "ESP-2147", "wrapped": "ESP-2208",
            "load_kernel": "ESP-2144", "no such blueprint": "ESP-5010", "bad validate": ["ESP-4000", "ESP-2120"],
            "fewer ranks": "ESP-2146", "trainer": "ESP-2712",
        }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_the_example_runs_under_torchrun(sharded: bool, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "examples/torchrun_ddp.py", "--steps", "200", "--root", str(tmp_path), *(["--fsdp"] if sharded else []),
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, env=environment())
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "grafted" in ended.stdout
    assert len(list(tmp_path.glob("run-*/events.jsonl"))) == 1
