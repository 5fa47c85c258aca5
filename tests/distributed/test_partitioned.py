"""Growth with ``ZeroRedundancyOptimizer``: every moment by name is, to the bit, that of the optimizer itself."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import results

pytestmark = pytest.mark.slow
HOW: dict[str, Any] = {"host": "nested_sequential", "blueprint": "mlp_adapter", "incubate": 0, "save_at": 85}
APART: dict[str, Any] = {**HOW, "incubate": 20, "save_at": 58}
"""Saved while a kernel learns apart."""


def _without_place(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key != "held"} for each in told]


@pytest.mark.parametrize("apart", [False, True], ids=["at_once", "apart"])
@pytest.mark.parametrize(("optimizer", "bucket_view"), [("adamw", False), ("adagrad", True)])
def test_partitioned_moments_live_through_everything_as_whole_ones_do(
    optimizer: str, bucket_view: bool, apart: bool, tmp_path: Path
) -> None:
    how = {**(APART if apart else HOW), "optimizer": optimizer, "bucket_view": bucket_view}
    whole, _ = results("partitioning.lived", tmp_path, partitioned=False, **how)
    first, second = results("partitioning.lived", tmp_path, partitioned=True, **how)
    assert _without_place(first["told"]) == _without_place(second["told"]) == _without_place(whole["told"])
    assert first["hooks"] == whole["hooks"]
    kinds = [event[1] for event in first["events"]]
    assert (kinds.count("grafted"), kinds.count("culled"), kinds.count("rolled_back")) == (3, 1, 1)
    assert any(each["apart"] for each in first["told"]) is apart
    for one, other in zip(first["told"], second["told"], strict=True):
        assert not set(one["held"]) & set(other["held"])  # each moment lies on one rank
        assert sorted(one["held"] + other["held"]) == one["names"]
        assert one["held"]
        assert other["held"]


@pytest.mark.parametrize("how", [HOW, APART], ids=["at_once", "apart"])
def test_a_partitioned_run_goes_on_to_the_bit(how: dict[str, Any], tmp_path: Path) -> None:
    how = {**how, "optimizer": "adamw", "bucket_view": False, "partitioned": True}
    unbroken = results("partitioning.lived", tmp_path, **how)
    resumed = results("partitioning.continued", tmp_path, **how)
    for before, after in zip(unbroken, resumed, strict=True):
        assert after["told"] == before["told"][how["save_at"] // 10 : 10]


def test_moments_that_are_lost_on_the_way_are_noticed(tmp_path: Path) -> None:
    how = {**HOW, "optimizer": "adamw", "bucket_view": False}
    whole, _ = results("partitioning.lived", tmp_path, partitioned=False, **how)
    faulty, _ = results("partitioning.lived", tmp_path, partitioned=True, faulty=True, **how)
    assert _without_place(faulty["told"]) != _without_place(whole["told"])
