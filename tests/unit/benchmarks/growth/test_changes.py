"""Data change as they claim to, a frozen host stays as it began, and arms of one seed share weights and batches."""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.growth import TASKS_OF
from benchmarks.growth.changes import FIRST_CLASSES, MORE_DATA, NEW_CLASSES, SHIFT, data_of
from benchmarks.growth.data_change import FREEZE, GO_ON, GROW, RETRAIN, SHORT, _arms, arm
from benchmarks.growth.runs import Run
from benchmarks.growth.tasks import TASKS
from benchmarks.growth.training import Course, perform
from esper.demos.messages import Place
from esper.kasmina.placement import CHILD

DIGITS = TASKS["digits"]
PLACES = tuple(Place(slot, 0, DIGITS.blueprint) for slot in DIGITS.slots)


def before(change: str, *, task: str = "digits", steps: int = 8) -> Run:
    width = TASKS[task].widths[0]
    return Run(task=task, arm="small", seed=3, rate=0.01, width=width, steps=steps, change=change, keep=True)


def after(change: str, *, replay: bool) -> Run:
    return msgspec.structs.replace(before(change), after=True, replay=replay)


@pytest.mark.parametrize("change", [MORE_DATA, NEW_CLASSES])
def test_what_was_there_and_what_came_are_the_whole_task_without_a_common_example(change: str) -> None:
    whole = DIGITS.load(3, None).train
    was, came = data_of(before(change), None).train, data_of(after(change, replay=False), None).train
    both = data_of(after(change, replay=True), None).train
    assert len(was.inputs) + len(came.inputs) == len(both.inputs) == len(whole.inputs)
    assert torch.equal(both.inputs.sum(), whole.inputs.sum())
    assert torch.equal(both.labels.bincount(), whole.labels.bincount())


def test_new_classes_are_in_no_part_before_and_in_every_held_out_part_after() -> None:
    was, now = data_of(before(NEW_CLASSES), None), data_of(after(NEW_CLASSES, replay=False), None)
    assert all(int(part.labels.max()) < FIRST_CLASSES for part in (was.train, was.validation, was.test))
    assert int(now.train.labels.min()) >= FIRST_CLASSES
    assert all(len(part.labels.unique()) == 10 for part in (now.validation, now.test))
    assert now.old is not None
    assert torch.equal(now.old.inputs, was.test.inputs)


def test_a_shift_mirrors_inputs_and_leaves_labels() -> None:
    was, now = data_of(before(SHIFT), None), data_of(after(SHIFT, replay=False), None)
    assert torch.equal(now.test.inputs.flip(-1), was.test.inputs)
    assert not torch.equal(now.test.inputs, was.test.inputs)
    assert torch.equal(now.test.labels, was.test.labels)


@pytest.mark.parametrize("change", [MORE_DATA, NEW_CLASSES, SHIFT])
def test_every_task_of_a_change_can_change_so(change: str) -> None:
    for task in TASKS_OF[change.replace(" ", "-")]:
        run = before(change, task=task)
        assert len(data_of(msgspec.structs.replace(run, after=True), None).train.inputs) >= TASKS[task].batch_size
        assert len(data_of(run, None).train.inputs) >= TASKS[task].batch_size


def test_arms_go_on_from_the_same_weights_and_the_retrained_one_begins_anew(tmp_path: Path) -> None:
    small = perform(before(SHIFT), tmp_path, None)
    makers = _arms(DIGITS, SHIFT, {3: small}, PLACES, 10**10)
    runs = {what: makers[arm(what, SHORT)](0.01, 3) for what in (GROW, FREEZE, GO_ON, RETRAIN)}
    assert len({run.flops for run in runs.values()}) == 1
    ends = load_file(tmp_path / f"{small.run.key}.weights")
    for what in (GROW, FREEZE, GO_ON):
        held = Course(runs[what], tmp_path, None).model.state_dict()
        assert all(torch.equal(held[name], value) for name, value in ends.items()), what
    fresh, anew = DIGITS.small(3).state_dict(), Course(runs[RETRAIN], tmp_path, None).model.state_dict()
    assert all(torch.equal(anew[name], value) for name, value in fresh.items())
    assert any(CHILD in name for name in anew)


def test_a_frozen_host_ends_as_it_began_while_its_grafts_learn_and_each_step_costs_less(tmp_path: Path) -> None:
    small = perform(before(SHIFT), tmp_path, None)
    grown = msgspec.structs.replace(
        after(SHIFT, replay=True), steps=6, begin=small.run.key, planted=PLACES, keep=False, arm="grow"
    )
    frozen = Course(msgspec.structs.replace(grown, frozen=True), tmp_path, None)
    frozen.train()
    ends = load_file(tmp_path / f"{small.run.key}.weights")
    now = frozen.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in ends.items())
    last = [
        value for name, value in frozen.model.named_parameters() if CHILD in name and float(value.detach().abs().max())
    ]
    assert len(last) == sum(CHILD in name for name, _ in frozen.model.named_parameters()), "a graft has not learned"
    free = Course(grown, tmp_path, None)
    free.train()
    moved = free.model.state_dict()
    assert not all(torch.equal(moved[name], value) for name, value in ends.items())
    assert frozen.meter.per_step < free.meter.per_step


def test_what_is_forgotten_is_measured_on_the_test_part_of_before(tmp_path: Path) -> None:
    small = perform(before(NEW_CLASSES, steps=60), tmp_path, None)
    onward = msgspec.structs.replace(after(NEW_CLASSES, replay=False), begin=small.run.key, steps=60, keep=False)
    alone = perform(onward, tmp_path, None)
    replayed = perform(msgspec.structs.replace(onward, replay=True), tmp_path, None)
    assert small.test is not None
    assert small.old_test is None
    assert alone.old_test is not None
    assert replayed.old_test is not None
    assert alone.old_test < min(small.test, replayed.old_test) - 10
