"""Every schedule gives a newborn the rate of its host to the bit, and the host the rate that it would have had."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from esper.services.tolaria.optimizer import add_newborn, remove_parameters
from esper.services.tolaria.optimizer_state import LIKE, capture_optimizer, restore_optimizer
from esper.services.tolaria.schedules import Schedule, capture_schedule, regrouped, restore_schedule, stray
from tests.laws.training import equal
from tests.unit.tolaria.kinds import OPTIMIZERS, SCHEDULES, TOTAL, Staircase, advance, groups_of

KINDS = ("sgd-momentum", "adamw", "adamw-tensor-rate")
OWN = ("params", LIKE, "name")
EVERY_PAIR = pytest.mark.parametrize(("kind", "schedule"), [(k, s) for k in KINDS for s in SCHEDULES])


class Course:
    """An optimizer under a schedule, with no gradient: what matters are its groups."""

    def __init__(self, kind: str, schedule: str) -> None:
        self.host = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        self.newborn = dict(nn.Linear(3, 3).named_parameters())
        self.optimizer: Optimizer = OPTIMIZERS[kind](groups_of(self.host))
        self.schedule: Schedule = SCHEDULES[schedule](self.optimizer)

    def run(self, steps: int) -> list[list[dict[str, Any]]]:
        """Return the options of every group after each step."""
        found = []
        for _ in range(steps):
            self.optimizer.step()
            advance(self.schedule)
            found.append(options(self.optimizer))
        return found

    def graft(self) -> None:
        with regrouped(self.schedule, self.optimizer):
            add_newborn(self.optimizer, self.newborn, like=1)

    def cull(self) -> None:
        with regrouped(self.schedule, self.optimizer):
            remove_parameters(self.optimizer, self.newborn.values())

    @property
    def named(self) -> dict[str, nn.Parameter]:
        return {**dict(self.host.named_parameters()), **{f"born.{k}": p for k, p in self.newborn.items()}}


def options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in group.items() if k not in OWN}
        for group in optimizer.param_groups
    ]


def hosts(options: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    return [groups[:2] for groups in options]


@EVERY_PAIR
def test_a_newborn_has_the_options_of_its_host_to_the_end_and_the_host_those_of_a_run_without_it(
    kind: str, schedule: str
) -> None:
    plain = Course(kind, schedule).run(TOTAL)
    for moment in range(0, TOTAL, 3):
        course = Course(kind, schedule)
        before = course.run(moment)
        course.graft()
        after = course.run(TOTAL - moment)
        assert all(equal(groups[2], groups[1]) for groups in after)
        assert equal(before + hosts(after), plain)


@EVERY_PAIR
def test_after_a_cull_or_a_rollback_the_schedule_is_that_of_a_run_without_graft(kind: str, schedule: str) -> None:
    plain = Course(kind, schedule).run(TOTAL)
    for moment in (0, 4, 11):
        course = Course(kind, schedule)
        course.run(moment)
        named = dict(course.host.named_parameters())
        held, state = capture_optimizer(course.optimizer, named), capture_schedule(course.schedule)
        course.graft()
        course.run(3)
        course.cull()
        assert equal(course.run(2), plain[moment + 3 : moment + 5])
        with regrouped(course.schedule, course.optimizer):
            restore_optimizer(course.optimizer, held, named)
        restore_schedule(course.schedule, state)
        assert equal(course.run(TOTAL - moment), plain[moment:])


@EVERY_PAIR
def test_a_fresh_schedule_goes_on_from_the_state_of_a_grown_one(kind: str, schedule: str) -> None:
    course = Course(kind, schedule)
    course.run(5)
    course.graft()
    course.run(2)
    held, state = capture_optimizer(course.optimizer, course.named), capture_schedule(course.schedule)
    assert is_plain(state)
    expected = course.run(TOTAL - 7)
    other = Course(kind, schedule)
    with regrouped(other.schedule, other.optimizer):
        restore_optimizer(other.optimizer, held, other.named)
    restore_schedule(other.schedule, state)
    assert equal(other.run(TOTAL - 7), expected)


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))


def test_a_counter_of_milestones_is_one_again() -> None:
    course = Course("adamw", "multi-step")
    state = capture_schedule(course.schedule)
    assert state is not None
    assert type(state["milestones"]) is dict
    restore_schedule(course.schedule, state)
    assert isinstance(course.schedule, MultiStepLR)
    assert list(course.schedule.milestones.elements()) == [3, 9, 9]


class Forgetful(Staircase):
    """A schedule whose list per group nobody is told of."""

    per_group = ()


class Elsewhere(LRScheduler):
    """A schedule that steps on its own and has no ``get_lr``."""

    def step(self, epoch: int | None = None) -> None:
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def test_a_schedule_that_would_not_follow_is_found_before_anything_grows() -> None:
    course = Course("adamw", "own")
    before = options(course.optimizer), dict(vars(course.schedule))
    assert stray(course.schedule, course.optimizer) is None
    forgetful = Forgetful(course.optimizer)
    found = stray(forgetful, course.optimizer)
    assert found is not None
    assert "one more group: ValueError" in found
    assert stray(Elsewhere(course.optimizer), course.optimizer) is None
    assert equal(options(course.optimizer), before[0])
    assert {k: v for k, v in vars(course.schedule).items() if k != "optimizer"} == {
        k: v for k, v in before[1].items() if k != "optimizer"
    }
