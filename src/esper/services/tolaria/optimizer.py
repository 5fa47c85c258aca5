"""Surgery on a running optimizer: parameters come and go, every surviving moment stays."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Adagrad, Optimizer

from esper.errors import ConfigError
from esper.services.tolaria.distributed.partition import holder_of, is_partitioned, moved, regroup
from esper.services.tolaria.optimizer_state import LIKE, NAMES, Moments, options_of, owned, placed

REFUSED = {
    "LBFGS": "its history is one flat vector over one group, and a newborn would void it",
    "SparseAdam": "it takes sparse gradients only, and those of a newborn are dense",
    "Muon": "it takes matrices only, and a newborn has biases",
}
"""Optimizers of torch that cannot hold a newborn, with the reason."""


def refusal(optimizer: Optimizer) -> str | None:
    """Return why an optimizer cannot hold a newborn, or None where it can."""
    kinds = {base.__name__ for base in type(holder_of(optimizer)).__mro__ if base.__module__.startswith("torch.optim")}
    return next((why for name, why in REFUSED.items() if name in kinds), None)


def name_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return every parameter of the model and the optimizer by name.

    A parameter that only the optimizer knows is named by its place in the host's groups there.
    """
    named = dict(model.named_parameters())
    known = {id(parameter) for parameter in named.values()}
    own = [group for group in optimizer.param_groups if LIKE not in group]
    for index, group in enumerate(own):
        for place, parameter in enumerate(group["params"]):
            if id(parameter) not in known:
                named[f"optimizer.{index}.{place}"] = parameter
    return named


def host_group_of(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    """Return the index of the host group that holds the bulk of ``parameters``; the first group where it knows none."""
    home = {id(p): int(group.get(LIKE, i)) for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    held: Counter[int] = Counter()
    for parameter in parameters:
        if id(parameter) in home:
            held[home[id(parameter)]] += parameter.numel()
    return held.most_common(1)[0][0] if held else 0


def add_newborn(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], *, like: int, options: Mapping[str, Any] | None = None
) -> None:
    """Give newborn parameters a group of their own that follows host group ``like`` in every option.

    Args:
        optimizer: Changed in place.
        parameters: By qualified name; those that need no gradient are left out.
        like: Index of the host group.
        options: Further ones of the newborn's group.

    Raises:
        ConfigError: If one of them is in the optimizer already.
    """
    newborn = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(parameter) in held for parameter in newborn.values()):
        raise ConfigError("adding the newborn's parameters", why="the optimizer holds them already", code="ESP-2110")
    if not newborn:
        return
    host = optimizer.param_groups[like]
    followed = {key: value for key, value in options_of(host).items() if key != NAMES}
    if "name" in host:  # of a group; tools that log by it need one of its own
        followed["name"] = f"{host['name']}/{next(iter(newborn)).partition('.kernel.')[0]}"
    members = list(newborn.items()) if NAMES in host else list(newborn.values())
    optimizer.add_param_group({**followed, **(options or {}), LIKE: like, "params": members})
    _give_birth_state(optimizer, newborn.values())


def remove_parameters(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of the optimizer, with their moments and with groups that they leave empty.

    Collective where the optimizer partitions its moments: those of parameters that fall to another rank go there.
    """
    leaving = {id(parameter) for parameter in parameters}
    followed = {id(group): optimizer.param_groups[group[LIKE]] for group in optimizer.param_groups if LIKE in group}
    for group in optimizer.param_groups:
        stays = [id(parameter) not in leaving for parameter in group["params"]]
        for parameter in group["params"]:
            if id(parameter) in leaving:
                holder_of(optimizer).state.pop(parameter, None)
        for key in {"params", NAMES} & group.keys():
            group[key] = [item for item, kept in zip(group[key], stays, strict=True) if kept]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"] or LIKE not in group]
    for group in optimizer.param_groups:
        if LIKE in group:
            group[LIKE] = index_of(followed[id(group)], optimizer.param_groups)
    if is_partitioned(optimizer):
        _repartition(optimizer)


def _repartition(optimizer: Optimizer) -> None:
    """Give each rank the moments of the parameters that are its own after groups have changed."""
    before = dict(holder_of(optimizer).state)
    regroup(optimizer, list(optimizer.param_groups))
    home = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    state = holder_of(optimizer).state
    state.clear()
    for parameter, moments in moved(optimizer, before).items():
        kept = before.get(parameter)
        state[parameter] = placed(moments, cast(nn.Parameter, parameter), home[id(parameter)]) if kept is None else kept


def dead_parameters(optimizer: Optimizer, model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of grafts that the model does not have any more, as after ``esper.unwrap``."""
    alive = {id(parameter) for parameter in model.parameters()}
    grown = [group for group in optimizer.param_groups if LIKE in group]
    return [parameter for group in grown for parameter in group["params"] if id(parameter) not in alive]


def give_moments(optimizer: Optimizer, parameter: nn.Parameter, moments: Moments) -> None:
    """Give a parameter moments that it has from elsewhere; where they are partitioned its owner takes them."""
    own = owned(optimizer)
    if own is None or id(parameter) in own:
        holder_of(optimizer).state[parameter] = moments


def index_of(group: object, groups: Sequence[object]) -> int:
    """Return where a group stands; groups are compared as objects, as equal ones are not the same."""
    return next(index for index, other in enumerate(groups) if other is group)


def _give_birth_state(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Give newborns what Adagrad gives in its constructor; the others begin at the first step."""
    holder, own = holder_of(optimizer), owned(optimizer)
    if not isinstance(holder, Adagrad):
        return
    for parameter in (p for p in parameters if own is None or id(p) in own):
        fused = bool(optimizer.param_groups[-1].get("fused"))
        dtype = torch.get_default_dtype() if torch.get_default_dtype() == torch.float64 and not fused else torch.float32
        step = torch.zeros((), dtype=dtype, device=parameter.device if fused else None)
        total = torch.full_like(parameter, holder.defaults["initial_accumulator_value"]).detach()
        holder.state[parameter] = {"step": step, "sum": total}
