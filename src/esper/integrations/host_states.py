"""The host's part of an optimizer's and a schedule's state: what a training without grafts can load by position."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from esper.kasmina.placement import CHILD
from esper.services.tolaria.optimizer_state import LIKE
from esper.services.tolaria.schedules import Schedule


def host_optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return ``optimizer.state_dict()`` without the parameters of grafts and the groups that they came in."""
    grown = {id(parameter) for name, parameter in model.named_parameters() if CHILD in name.split(".")}
    whole = optimizer.state_dict()
    places: dict[int, int] = {}
    groups = []
    for group, own in zip(whole["param_groups"], optimizer.param_groups, strict=True):
        kept = [place for place, p in zip(group["params"], own["params"], strict=True) if id(p) not in grown]
        if kept or LIKE not in group:
            places.update({place: len(places) + index for index, place in enumerate(kept)})
            groups.append({**group, "params": [places[place] for place in kept]})
    state = {places[place]: moments for place, moments in whole["state"].items() if place in places}
    return {**whole, "state": state, "param_groups": groups}


def host_schedule_state(schedule: Schedule, optimizer: Optimizer) -> dict[str, Any]:
    """Return ``schedule.state_dict()`` with the functions of host groups only, which a schedule counts when it loads."""
    own = [index for index, group in enumerate(optimizer.param_groups) if LIKE not in group]
    return _without_functions(schedule.state_dict(), own)


def _without_functions(state: dict[str, Any], own: list[int]) -> dict[str, Any]:
    kept = dict(state)
    if isinstance(kept.get("lr_lambdas"), list):
        kept["lr_lambdas"] = [kept["lr_lambdas"][index] for index in own]
    if isinstance(kept.get("_schedulers"), list):
        kept["_schedulers"] = [_without_functions(inner, own) for inner in kept["_schedulers"]]
    return kept
