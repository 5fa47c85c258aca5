"""What cannot grow on several ranks is refused before anything is started; and the example runs as it is printed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.launching import ROOT, environment, results


@pytest.mark.slow
def test_what_cannot_grow_on_several_ranks_is_refused(tmp_path: Path) -> None:
    for found in results("refusals.refused", tmp_path):
        assert found == {
            "bare": "ESP-2141", "ddp of another": "ESP-2149", "zero": "ESP-2147", "wrapped": "ESP-2208",
            "load_kernel": "ESP-2144", "no such blueprint": "ESP-5010", "bad validate": ["ESP-4000", "ESP-2120"],
            "fewer ranks": "ESP-2146",
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


@pytest.mark.slow
def test_the_trainers_example_is_stopped_under_torchrun_and_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "examples/torchrun_trainer.py", "--epochs", "25", "--root", str(tmp_path),
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    ) as begun:
        ends = time.monotonic() + 60
        while (
            not list(tmp_path.glob("run-*/checkpoints/*-step-*")) and time.monotonic() < ends and begun.poll() is None
        ):
            time.sleep(0.1)
        begun.send_signal(signal.SIGINT)
        assert begun.wait(timeout=40) != 0
    assert list(tmp_path.glob("run-*/checkpoints/*-step-*")), "it kept where it was"
    ended = subprocess.run(
        [*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=110, env=environment(), check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "finished after 800 steps" in ended.stdout, ended.stdout[-500:]
