"""Learning-rate schedules that follow growth."""

import copy
from typing import Any, Protocol, cast

from torch.optim import Optimizer

from esper.services.tolaria.optimizer import LIKE

PER_GROUP = ("base_lrs", "lr_lambdas", "_last_lr", "min_lrs", "max_lrs", "base_momentums", "max_momentums")
"""Lists in torch's schedulers that have one entry per parameter group."""


class Schedule(Protocol):
    """What Esper needs of a scheduler; every one of ``torch.optim.lr_scheduler`` has it."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state back."""
        ...


def follow_groups(schedule: Schedule | None, optimizer: Optimizer) -> None:
    """Give the schedule one entry per group of the optimizer: a newborn's is that of the host group it follows.

    Raises nothing for schedules without such lists. Nested schedules (sequential, chained) follow too.
    """
    if schedule is None:
        return
    likes = [int(group.get(LIKE, index)) for index, group in enumerate(optimizer.param_groups)]
    for name in PER_GROUP:
        entries = vars(schedule).get(name)
        if isinstance(entries, list) and entries:
            setattr(schedule, name, [entries[like] for like in likes])
    for inner in cast("list[Schedule]", vars(schedule).get("_schedulers", [])):
        follow_groups(inner, optimizer)


def capture_schedule(schedule: Schedule | None) -> dict[str, Any] | None:
    """Return a copy of the schedule's state, without its functions."""
    return None if schedule is None else copy.deepcopy(_plain(schedule.state_dict()))


def restore_schedule(schedule: Schedule | None, state: dict[str, Any] | None, optimizer: Optimizer) -> None:
    """Put the schedule back to ``state``; the optimizer's groups are those of ``state`` already."""
    if schedule is None or state is None:
        return
    follow_groups(schedule, optimizer)
    schedule.load_state_dict(copy.deepcopy(state))


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not callable(value)}
