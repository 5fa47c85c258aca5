"""On several ranks a kernel learns apart alike and is late alike."""

from pathlib import Path

import pytest

from tests.distributed.launching import results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
HOW = {"host": "nested_sequential", "blueprint": "mlp_adapter"}


def test_what_learns_apart_is_the_same_on_every_rank_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    first, second = results("runs.apart", tmp_path, **HOW)
    healthy = slice(0, 66)  # rank 1 is given a kernel that is not finite then
    assert [told[:2] for told in first["told"]][healthy] == [told[:2] for told in second["told"]][healthy]
    assert [told[0] for told in first["told"]] == [told[0] for told in second["told"]]
    assert any(told[1] for told in first["told"])
    assert first["events"] == second["events"]
    kinds = [event[1] for event in first["events"]]
    assert kinds.count("incubating") == 2
    assert kinds.count("grafted") == 1
    assert "culled" in kinds, "what was not finite on one rank has ended on both"
    for rank in (first, second):
        assert rank["again"] == rank["told"][45:60]


def test_what_does_not_earn_its_rent_leaves_on_every_rank(tmp_path: Path) -> None:
    first, second = results("runs.shrunk", tmp_path, **HOW)
    assert first == second
    assert [first["idle"], 0.0] in [list(left[:2]) for left in first["left"]]
    assert first["idle"] not in first["grown"]


def test_a_kernel_that_is_late_slips_on_every_rank(tmp_path: Path) -> None:
    first, second = results("runs.late", tmp_path, **HOW)
    assert first == second
    kinds = [(event[0], event[1]) for event in first["events"]]
    assert [kind for _, kind in kinds].count("late") >= 1
    assert (50, "grafted") in kinds or (60, "grafted") in kinds
