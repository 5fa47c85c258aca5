"""An optimizer as data, by name of the parameter: its groups, its moments, and how they are put back to the bit.

Parameters are keyed by qualified name, never by position: positional reload silently swaps groups of equal size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.services.tolaria.copies import borrowed, copied
from esper.services.tolaria.distributed.partition import holder_of, is_partitioned, regroup

LIKE = "esper_like"
"""Key in a newborn's group: index of the host group whose options it follows."""

NAMES = "param_names"
"""Key in the groups of an optimizer that was made from named parameters: one name per parameter."""

Options = dict[str, Any]
Moments = dict[str, Any]


@dataclass(frozen=True)
class GroupState:
    """One parameter group: its options, and its parameters by name."""

    options: Options
    names: tuple[str, ...]


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer as of one moment, keyed by qualified name.

    Attributes:
        groups: In their order.
        moments: What it holds for each parameter.
        extras: What it holds under other keys.
    """

    groups: tuple[GroupState, ...]
    moments: dict[str, Moments]
    extras: dict[str, Any] = field(default_factory=dict)


def capture_optimizer(optimizer: Optimizer, named: Mapping[str, nn.Parameter], *, copy: bool = True) -> OptimizerState:
    """Return the optimizer's groups, moments, and whatever else its state holds; this rank's own moments only.

    Args:
        optimizer: The optimizer.
        named: Its parameters by name.
        copy: Whether moments are copied, rather than the very tensors that the next step changes.
    """
    take = copied if copy else borrowed
    names = {id(parameter): name for name, parameter in named.items()}
    groups = tuple(
        GroupState(options_of(group), tuple(names[id(parameter)] for parameter in group["params"]))
        for group in optimizer.param_groups
    )
    held = _state(holder_of(optimizer))
    moments = {names[id(key)]: take(state) for key, state in held.items() if id(key) in names}
    extras = {key: take(value) for key, value in held.items() if isinstance(key, str)}
    return OptimizerState(groups, moments, extras)


def restore_optimizer(
    optimizer: Optimizer, state: OptimizerState, named: Mapping[str, nn.Parameter], *, keep_options: bool = False
) -> None:
    """Make the optimizer what ``state`` says, to the bit; no value is cast, and groups that stay are the same objects.

    Args:
        optimizer: Changed in place.
        state: What ``capture_optimizer`` returned.
        named: The parameters that exist now, by name.
        keep_options: Whether groups that exist now keep their options, such as the learning rate that a schedule set.
    """
    groups: list[dict[str, Any]] = []
    for saved in state.groups:
        parameters = [named[name] for name in saved.names]
        group = _present(optimizer.param_groups, parameters, taken=groups)
        if group is None or not keep_options:
            template = group or _followed(groups, saved.options)
            group = {} if group is None else group
            _set_options(group, saved.options, template=template)
        else:
            group.update({key: copied(saved.options[key]) for key in (LIKE, NAMES) if key in saved.options})
        group["params"] = parameters
        groups.append(group)
    regroup(optimizer, groups)
    held = _state(holder_of(optimizer))
    held.clear()
    home = {id(parameter): group for group in groups for parameter in group["params"]}
    own = owned(optimizer)
    for name, moments in state.moments.items():
        if own is None or id(named[name]) in own:
            held[named[name]] = placed(moments, named[name], home.get(id(named[name]), {}))
    for key, value in state.extras.items():
        held[key] = copied(value)


def owned(optimizer: Optimizer) -> set[int] | None:
    """Return the parameters whose moments fall to this rank; None where all do."""
    if not is_partitioned(optimizer):
        return None
    return {id(parameter) for group in holder_of(optimizer).param_groups for parameter in group["params"]}


def _state(optimizer: Optimizer) -> dict[object, Any]:
    """Return the optimizer's state, in which some keep more than what belongs to a parameter."""
    return cast("dict[object, Any]", optimizer.state)


def options_of(group: Mapping[str, Any]) -> Options:
    """Return a copy of what a group holds beside its parameters."""
    return {key: copied(value) for key, value in group.items() if key != "params"}


def _present(
    groups: Sequence[dict[str, Any]], parameters: Sequence[nn.Parameter], *, taken: Sequence[object]
) -> dict[str, Any] | None:
    """Return the group that holds one of ``parameters`` now; for none, the first empty one."""
    wanted = {id(parameter) for parameter in parameters}
    for group in groups:
        holds = bool(wanted & {id(p) for p in group["params"]}) if wanted else not group["params"]
        if holds and not any(group is other for other in taken):
            return group
    return None


def _followed(groups: Sequence[dict[str, Any]], options: Options) -> dict[str, Any]:
    """Return the group that a newborn's follows, where it was restored already."""
    like = options.get(LIKE)
    return groups[like] if like is not None and like < len(groups) else {}


def _set_options(group: dict[str, Any], options: Options, *, template: Mapping[str, Any]) -> None:
    """Give a group options; a tensor that stays is the same object, and a list that was a tuple is one again."""
    before = dict(template)
    for key in group.keys() - options.keys() - {"params"}:
        del group[key]
    for key, value in options.items():
        now = group.get(key)
        if (
            isinstance(now, Tensor)
            and isinstance(value, Tensor)
            and now.shape == value.shape
            and now.dtype == value.dtype
        ):
            with torch.no_grad():
                now.copy_(value)
        else:
            group[key] = tuple(value) if isinstance(before.get(key), tuple) else copied(value)


def placed(moments: Any, parameter: nn.Parameter, group: Mapping[str, Any]) -> Any:
    """Return moments on the device and in the memory format of their parameter, never cast.

    A scalar, such as a step count, stays where it is, unless the optimizer reads it on the device.
    """
    if not isinstance(moments, dict):
        return copied(moments)
    on_device = bool(group.get("capturable") or group.get("fused"))
    return {key: _near(value, parameter, scalars=on_device) for key, value in moments.items()}


def _near(value: Any, parameter: nn.Parameter, *, scalars: bool) -> Any:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or (not value.ndim and not scalars):
        return copied(value)
    if value.shape != parameter.shape:
        return copied(value.to(parameter.device))
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value.detach())
