"""Batches shared out among processes: equally many for each, every example once, and means over all examples."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ConfigError
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.trainer import TolariaTrainer
from esper.services.tolaria.trainer.drawing import Shuffled
from esper.services.tolaria.trainer.processes import team_of
from esper.services.tolaria.trainer.sharing import Dealt, Part, Shared
from tests.unit.tolaria.trainer.support import config, host


class Of(Team):
    """One of several processes, without the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class Listed:
    """Batches that are given."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, seed: int, epoch: int) -> Sequence[Any]:
        return self._batches


def parts(order: Any, size: int, *, batched: bool = True, drop_last: bool = False) -> list[list[Part]]:
    """Return what each process has of one epoch."""
    return [Shared(order, Of(rank, size), batched=batched, drop_last=drop_last).parts(3, 1) for rank in range(size)]


COUNTS = st.integers(1, 40)


@given(count=COUNTS, size=st.integers(1, 7), ranks=st.integers(1, 5), shuffle=st.booleans())
def test_every_example_counts_once_and_all_take_equally_many_steps(
    count: int, size: int, ranks: int, shuffle: bool
) -> None:
    order = Shuffled(count, size, drop_last=False, shuffle=shuffle)
    found = parts(order, ranks)
    assert len({len(own) for own in found}) == 1
    assert len(found[0]) == len(Shared(order, Of(0, ranks), batched=True, drop_last=False))
    counted = [part.indices for own in found for part in own if part.weight]
    assert sorted(chain.from_iterable(counted)) == list(range(count))
    assert len({part.number for own in found for part in own}) == len(found) * len(found[0])
    together = Shuffled(count, size * ranks, drop_last=False, shuffle=shuffle).epoch(3, 1)
    for step, whole in enumerate(together):
        mean = sum(own[step].weight * sum(own[step].indices) / len(own[step].indices) for own in found) / ranks
        assert mean == pytest.approx(sum(whole) / len(whole))  # as one process with the batches of all has it


def test_whole_rounds_have_weight_one_to_the_bit_and_a_loose_end_may_be_dropped() -> None:
    found = parts(Shuffled(70, 7, drop_last=True, shuffle=False), 3, drop_last=True)
    assert [len(own) for own in found] == [3, 3, 3]
    assert {part.weight for own in found for part in own} == {1.0}


def test_batches_that_are_made_already_are_dealt_out_whole() -> None:
    found = parts(Listed(["a", "b", "c", "d", "e"]), 3, batched=False)
    assert [[(part.indices, part.weight) for part in own] for own in found] == [
        [("a", 1.0), ("d", 1.5)], [("b", 1.0), ("e", 1.5)], [("c", 1.0), ("d", 0.0)],
    ]  # fmt: skip


@given(count=COUNTS, size=st.integers(1, 9), ranks=st.integers(1, 5))
def test_held_out_examples_are_measured_once_each(count: int, size: int, ranks: int) -> None:
    order = Shuffled(count, size, drop_last=False, shuffle=False)
    found = [Dealt(order, Of(rank, ranks), batched=True).parts(0, 0) for rank in range(ranks)]
    assert sorted(index for own in found for part in own for index in part.indices) == list(range(count))
    assert all(part.indices for own in found for part in own)


def test_a_process_that_torchrun_started_must_join_the_others_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with pytest.raises(ConfigError) as refused:
        TolariaTrainer(config(Path("nowhere"))).fit(host(), [])
    assert refused.value.code == "ESP-2716"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert team_of(host(), {}, control="twin").size == 1


def test_a_model_in_copies_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        team_of(torch.nn.DataParallel(host()), {}, control=None)
    assert refused.value.code == "ESP-2712"
