"""Learning-rate schedules that follow growth."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.services.tolaria.copies import copied
from esper.services.tolaria.optimizer import index_of
from esper.services.tolaria.optimizer_state import LIKE

PER_GROUP = ("base_lrs", "lr_lambdas", "_last_lr", "min_lrs", "max_lrs", "base_momentums", "max_momentums")
"""Lists in torch's schedulers that have one entry per parameter group.

A scheduler of the user's own names further ones in a class attribute ``per_group``.
"""


RETYPED = (Counter, OrderedDict, tuple)
"""What a schedule may hold that its state, in plain containers, does not tell from a dict or a list."""


class Schedule(Protocol):
    """What Esper needs of a scheduler; every one of ``torch.optim.lr_scheduler`` has it."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state back."""
        ...


class Schedules:
    """Several schedules of one optimizer that follow growth as one, such as a decay and the SWALR after it.

    Args:
        schedules: Each is stepped by the caller alone.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self._schedulers = list(schedules)

    @property
    def each(self) -> tuple[Schedule, ...]:
        """The schedules."""
        return tuple(self._schedulers)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each."""
        return {"_schedulers": [schedule.state_dict() for schedule in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of each back."""
        for schedule, state in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            schedule.load_state_dict(state)


def as_one(given: Schedule | Sequence[Schedule] | None) -> Schedule | None:
    """Return what was given as one schedule."""
    if isinstance(given, (list, tuple)):
        return Schedules(given) if len(given) != 1 else given[0]
    return cast("Schedule | None", given)


@contextmanager
def regrouped(schedule: Schedule | None, optimizer: Optimizer) -> Iterator[None]:
    """Let a schedule fit the groups that come or go inside the block, also where it fails."""
    before = list(optimizer.param_groups)
    try:
        yield
    finally:
        follow_groups(schedule, optimizer, before)


def follow_groups(schedule: object, optimizer: Optimizer, before: Sequence[dict[str, Any]]) -> None:
    """Give the schedule one entry per group of the optimizer: a newborn's is that of the host group it follows.

    Args:
        schedule: Nested ones (sequential, chained) follow too; one without such lists is left as it is.
        optimizer: Its groups are those of now.
        before: The groups for which the schedule has entries.
    """
    if schedule is None:
        return
    origins = [_origin(group, optimizer.param_groups, before) for group in optimizer.param_groups]
    for name in (*PER_GROUP, *getattr(type(schedule), "per_group", ())):
        entries = vars(schedule).get(name)
        if isinstance(entries, list) and len(entries) == len(before):
            setattr(schedule, name, [_entry(entries, origin) for origin in origins])
    for inner in vars(schedule).get("_schedulers", []):
        follow_groups(inner, optimizer, before)


def capture_schedule(schedule: Schedule | None) -> dict[str, Any] | None:
    """Return a copy of the schedule's state in plain containers, without its functions."""
    return None if schedule is None else copied(_plain(schedule.state_dict()))


def restore_schedule(schedule: Schedule | None, state: dict[str, Any] | None) -> None:
    """Put the schedule back to ``state``; it has followed the optimizer's groups to those of ``state`` already."""
    if schedule is None or state is None:
        return
    schedule.load_state_dict(_as_held(schedule, copied(state)))


def stray(schedule: object, optimizer: Optimizer) -> str | None:
    """Return why a schedule would not follow a newborn, or None where it would; tried out on a copy.

    Those of torch are known to follow.
    """
    for inner in vars(schedule).get("_schedulers", []):
        if (why := stray(inner, optimizer)) is not None:
            return why
    if not isinstance(schedule, LRScheduler) or type(schedule).__module__.startswith("torch.optim"):
        return None
    groups, options = optimizer.param_groups, [dict(group) for group in optimizer.param_groups]
    before, trial = list(groups), copy.copy(schedule)
    groups.append({**copied({k: v for k, v in groups[0].items() if k != "params"}), LIKE: 0, "params": []})
    try:
        follow_groups(trial, optimizer, before)
        trial._get_lr_called_within_step = True
        rates = len(trial.get_lr())
        return None if rates == len(groups) else f"it gives {rates} rates to {len(groups)} groups"
    except NotImplementedError:
        return None
    except Exception as error:
        return f"it fails with one more group: {type(error).__name__}: {error}"
    finally:
        groups.pop()
        for group, held in zip(groups, options, strict=True):
            group.clear()
            group.update(held)


def _origin(group: dict[str, Any], now: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> int:
    """Return the index in ``before`` of a group, or of the host group that it follows."""
    if any(group is other for other in before):
        return index_of(group, before)
    host = now[int(group.get(LIKE, 0))]
    return index_of(host, before) if any(host is other for other in before) else 0


def _entry(entries: Sequence[Any], origin: int) -> Any:
    """Return a group's entry; a function is shared, as torch shares it between groups."""
    entry = entries[origin]
    return entry if callable(entry) else copied(entry)


def _plain(value: Any) -> Any:
    """Return a value in plain containers; functions are left out of mappings, and so is a list that has one."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not _has_function(item)}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _has_function(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_function(item) for item in value)
    return callable(value)


def _as_held(schedule: object, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose containers are of the types that the schedule holds, such as the Counter of milestones."""
    held = vars(schedule)
    inner = held.get("_schedulers")
    for name, value in state.items():
        if name == "_schedulers" and inner is not None:
            state[name] = [_as_held(each, part) for each, part in zip(inner, value, strict=True)]
        elif type(held.get(name)) in RETYPED and type(value) in (dict, list):
            state[name] = type(held[name])(value)
    return state
