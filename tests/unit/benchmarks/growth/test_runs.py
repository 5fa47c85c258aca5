"""A run depends on its own description alone, and is trained once."""

from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Run
from benchmarks.growth.tasks import TASKS
from benchmarks.growth.training import perform
from esper.demos.messages import Place
from esper.demos.training import num_params
from esper.ir import REGISTRY
from esper.kasmina import placement_of

RUN = Run(task="friedman", arm="static", seed=3, rate=0.01, width=2, steps=40, keep=True)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_host_for_each_width_and_its_blueprint_fits_every_slot(name: str) -> None:
    task = TASKS[name]
    data = task.load(0, None)
    for width in task.widths:
        model = task.small(0, width=width)
        assert torch.isfinite(task.losses(model(data.train.inputs[:4]), data.train.labels[:4])).all()
    small = task.small(0)
    task.wrapped(small, data)
    for slot in task.slots:
        assert REGISTRY.refusal(task.blueprint, placement_of(small).place(slot).site()) is None


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.begins is not None])
def test_where_the_size_is_not_known_growth_begins_with_the_widest_path_and_half_of_what_the_widest_host_has(
    name: str,
) -> None:
    task = TASKS[name]
    data = task.load(0, None)
    first, widest = task.small(0, width=task.begins_with), task.small(0, width=task.widths[-1])
    for model in (first, widest):
        task.wrapped(model, data)
    for slot in task.slots:
        assert placement_of(first).place(slot).site() == placement_of(widest).place(slot).site()
    assert num_params(first) < 0.7 * num_params(widest)


def test_a_run_on_file_is_not_trained_again_and_one_that_is_gives_the_same(tmp_path: Path) -> None:
    with Bench(tmp_path / "first", lanes=1) as bench:
        (first,) = bench.outcomes([RUN])
        (file,) = (tmp_path / "first").glob("*.json")
        written = file.stat().st_mtime_ns
        assert bench.outcomes([RUN]) == [first]
        assert file.stat().st_mtime_ns == written
    again = perform(RUN, tmp_path, None)
    same = ("steps", "params", "flops", "validation_loss", "test", "curve")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]


def test_a_continued_run_takes_weights_and_moments_over_and_a_planted_one_stays_within_its_flops(
    tmp_path: Path,
) -> None:
    small = perform(RUN, tmp_path, None)
    onward = msgspec.structs.replace(RUN, steps=0, flops=20 * small.flops, begin=small.run.key, keep=False)
    grafts = tuple(Place(slot, 0, "gated_mlp") for slot in TASKS["friedman"].slots)
    continued, grown = (
        perform(run, tmp_path, None) for run in (onward, msgspec.structs.replace(onward, arm="grow", planted=grafts))
    )
    assert continued.steps == 800
    assert continued.validation_loss < small.validation_loss
    assert grown.places == grafts
    assert grown.overhead > 0
    assert grown.flops <= onward.flops
