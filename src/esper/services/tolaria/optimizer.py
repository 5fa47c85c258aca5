"""Surgery on a running optimizer: parameters come and go, every surviving moment stays.

Parameters are keyed by qualified name, never by position: positional reload silently swaps groups of equal size.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Optimizer

from esper.errors import ConfigError
from esper.services.tolaria.distributed.partition import holder_of, is_partitioned, moved, regroup

LIKE = "esper_like"
"""Key in a newborn's group: index of the host group whose options it follows."""

NAMES = "param_names"
"""Key in the groups of an optimizer that was made from named parameters: one name per parameter."""

REFUSED = {
    "LBFGS": "its history is one flat vector over one group, and a newborn would void it",
    "SparseAdam": "it takes sparse gradients only, and those of a newborn are dense",
    "Muon": "it takes matrices only, and a newborn has biases",
}
"""Optimizers of torch that cannot hold a newborn, with the reason."""

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
    followed = {key: value for key, value in _options(host).items() if key != NAMES}
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
        state[parameter] = (
            _placed(moments, cast(nn.Parameter, parameter), home[id(parameter)]) if kept is None else kept
        )


def dead_parameters(optimizer: Optimizer, model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of grafts that the model does not have any more, as after ``esper.unwrap``."""
    alive = {id(parameter) for parameter in model.parameters()}
    grown = [group for group in optimizer.param_groups if LIKE in group]
    return [parameter for group in grown for parameter in group["params"] if id(parameter) not in alive]


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
        GroupState(_options(group), tuple(names[id(parameter)] for parameter in group["params"]))
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
    own = _owned(optimizer)
    for name, moments in state.moments.items():
        if own is None or id(named[name]) in own:
            held[named[name]] = _placed(moments, named[name], home.get(id(named[name]), {}))
    for key, value in state.extras.items():
        held[key] = copied(value)


def give_moments(optimizer: Optimizer, parameter: nn.Parameter, moments: Moments) -> None:
    """Give a parameter moments that it has from elsewhere; where they are partitioned its owner takes them."""
    own = _owned(optimizer)
    if own is None or id(parameter) in own:
        holder_of(optimizer).state[parameter] = moments


def _owned(optimizer: Optimizer) -> set[int] | None:
    """Return the parameters whose moments fall to this rank; None where all do."""
    if not is_partitioned(optimizer):
        return None
    return {id(parameter) for group in holder_of(optimizer).param_groups for parameter in group["params"]}


def index_of(group: object, groups: Sequence[object]) -> int:
    """Return where a group stands; groups are compared as objects, as equal ones are not the same."""
    return next(index for index, other in enumerate(groups) if other is group)


def copied(value: Any) -> Any:
    """Return a copy whose tensors are detached and keep their memory format."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format)
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return copy.deepcopy(value)


def borrowed(value: Any) -> Any:
    """Return a value in containers of its own, whose tensors are the same memory, detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(borrowed(item) for item in value)
    if type(value) is dict:
        return {key: borrowed(item) for key, item in value.items()}
    return value


def _state(optimizer: Optimizer) -> dict[object, Any]:
    """Return the optimizer's state, in which some keep more than what belongs to a parameter."""
    return cast("dict[object, Any]", optimizer.state)


def _options(group: Mapping[str, Any]) -> Options:
    return {key: copied(value) for key, value in group.items() if key != "params"}


def _give_birth_state(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Give newborns what Adagrad gives in its constructor; the others begin at the first step."""
    holder, own = holder_of(optimizer), _owned(optimizer)
    if not isinstance(holder, Adagrad):
        return
    for parameter in (p for p in parameters if own is None or id(p) in own):
        fused = bool(optimizer.param_groups[-1].get("fused"))
        dtype = torch.get_default_dtype() if torch.get_default_dtype() == torch.float64 and not fused else torch.float32
        step = torch.zeros((), dtype=dtype, device=parameter.device if fused else None)
        total = torch.full_like(parameter, holder.defaults["initial_accumulator_value"]).detach()
        holder.state[parameter] = {"step": step, "sum": total}


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


def _placed(moments: Any, parameter: nn.Parameter, group: Mapping[str, Any]) -> Any:
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
