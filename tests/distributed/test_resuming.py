"""A run on several ranks goes on to the bit, and a rank that dies while a graft joins leaves one to go on from."""

import signal
from pathlib import Path

import pytest

from tests.distributed.launching import launch, results

HOW = {"host": "dropout", "blueprint": "mlp_adapter"}


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_on_every_rank(tmp_path: Path) -> None:
    unbroken = results("runs.unbroken", tmp_path, **HOW)
    resumed = results("runs.resumed", tmp_path, **HOW)
    for before, after in zip(unbroken, resumed, strict=True):
        assert after["after"] == before["after"]
        assert after["events"] == before["events"]
    assert unbroken[0]["after"] != unbroken[1]["after"]  # generators and state= are each rank's own


@pytest.mark.slow
@pytest.mark.chaos
def test_a_rank_that_dies_in_mid_graft_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    survivor, dead = launch("runs.dying", tmp_path, timeout_s=5, **HOW)
    assert dead.code == -signal.SIGKILL
    assert survivor.code not in (0, -signal.SIGKILL)
    assert survivor.result is None
    first, second = results("runs.restarted", tmp_path, **HOW)
    assert [event[1] for event in first["events"]].count("grafted") == 1
    assert first["events"] == second["events"]
    assert [line.split()[0] for line in first["after"]] == [line.split()[0] for line in second["after"]]
