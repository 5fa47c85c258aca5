"""Newborn gradients under DDP are the mean over the ranks, however DDP is used, and training is that of one process."""

from pathlib import Path

import pytest

from tests.distributed.launching import launch, results

pytestmark = pytest.mark.slow

WAYS = (
    "plain", "uneven batches", "bucket view", "static graph", "checkpointed", "checkpointed, reentrant", "accumulated",
    "unused here",
)  # fmt: skip


def test_gradients_of_newborns_are_averaged_however_ddp_is_used(tmp_path: Path) -> None:
    for found in results("gradients.reduced", tmp_path):
        assert {way: found[way] for way in WAYS} == {way: [] for way in WAYS}
        assert all("second" in name for name in found["unused anywhere"])
        assert found["unused anywhere"]
        assert found["overflow"] == [True, 2.0]
        assert found["join"] == "ESP-2143"
        assert found["without the reducer"]
        assert all("esper_grafts" in name for name in found["without the reducer"])


def test_two_ranks_train_as_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    first, second = results("runs.trained", tmp_path)
    (alone,) = results("runs.trained", tmp_path, size=1, shares=2)
    assert first["digest"] == second["digest"]
    assert first["validation"] == pytest.approx(alone["validation"], rel=1e-4)
    for name, values in alone["parameters"].items():
        assert first["parameters"][name] == pytest.approx(values, abs=1e-4), name


def test_ranks_that_part_are_stopped_at_the_next_boundary(tmp_path: Path) -> None:
    for ended in launch("runs.trained", tmp_path, faulty=True):
        assert ended.code != 0
        assert "ESP-6010" in ended.stderr
        assert "the boundary at step 20" in ended.stderr or "the boundary at step 30" in ended.stderr
