"""Surgery on a running optimizer: parameters come and go, every surviving moment stays.

Parameters are keyed by qualified name, never by position: positional reload silently swaps groups of equal size.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import ConfigError

LIKE = "esper_like"
"""Key in a newborn's group: index of the host group whose options it follows."""

Options = dict[str, Any]
Moments = dict[str, Any]


@dataclass(frozen=True)
class GroupState:
    """One parameter group: its options, and its parameters by name."""

    options: Options
    names: tuple[str, ...]


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer as of one moment, keyed by qualified name."""

    groups: tuple[GroupState, ...]
    moments: dict[str, Moments]


def name_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return every parameter of the model and the optimizer by name.

    A parameter that only the optimizer knows is named by its place there.
    """
    named = dict(model.named_parameters())
    known = {id(parameter) for parameter in named.values()}
    for index, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if id(parameter) not in known:
                named[f"optimizer.{index}.{place}"] = parameter
    return named


def add_newborn(optimizer: Optimizer, parameters: Iterable[nn.Parameter], *, like: int) -> None:
    """Give newborn parameters a group of their own that follows host group ``like`` in every option.

    Raises:
        ConfigError: If one of them is in the optimizer already.
    """
    newborn = [parameter for parameter in parameters if parameter.requires_grad]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(parameter) in held for parameter in newborn):
        raise ConfigError("adding the newborn's parameters", why="the optimizer holds them already", code="ESP-2110")
    if newborn:
        optimizer.add_param_group({**_options(optimizer.param_groups[like]), LIKE: like, "params": newborn})


def remove_parameters(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of the optimizer, with their moments and with groups that they leave empty."""
    leaving = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in leaving:
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in leaving]
    optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"] or LIKE not in g]


def host_group_of(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> int:
    """Return the index of the group that holds the first of ``parameters`` it knows; the first group otherwise."""
    home = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for parameter in parameters:
        if id(parameter) in home:
            index = home[id(parameter)]
            return int(optimizer.param_groups[index].get(LIKE, index))
    return 0


def capture_optimizer(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> OptimizerState:
    """Return a copy of the optimizer's groups and moments."""
    names = {id(parameter): name for name, parameter in named.items()}
    groups = tuple(
        GroupState(_options(group), tuple(names[id(parameter)] for parameter in group["params"]))
        for group in optimizer.param_groups
    )
    moments = {names[id(p)]: _copied(state) for p, state in optimizer.state.items() if isinstance(p, Tensor)}
    return OptimizerState(groups, moments)


def restore_optimizer(
    optimizer: Optimizer, state: OptimizerState, named: Mapping[str, nn.Parameter], *, keep_options: bool = False
) -> None:
    """Make the optimizer what ``state`` says, to the bit.

    Args:
        optimizer: Changed in place.
        state: What ``capture_optimizer`` returned.
        named: The parameters that exist now, by name.
        keep_options: Whether groups that exist now keep their options, such as the learning rate that a schedule set.
    """
    now = {id(group["params"][0]): _options(group) for group in optimizer.param_groups if group["params"]}
    groups = []
    for saved in state.groups:
        parameters = [named[name] for name in saved.names]
        kept = now.get(id(parameters[0])) if keep_options and parameters else None
        groups.append({"params": parameters, **(kept or copy.deepcopy(saved.options))})
    optimizer.param_groups[:] = groups
    for parameter in [key for key in optimizer.state if isinstance(key, Tensor)]:
        del optimizer.state[parameter]
    for name, moments in state.moments.items():
        optimizer.state[named[name]] = _copied(moments)


def _options(group: Mapping[str, Any]) -> Options:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}


def _copied(moments: Mapping[str, Any]) -> Moments:
    return {
        key: value.detach().clone(memory_format=torch.preserve_format)
        if isinstance(value, Tensor)
        else copy.deepcopy(value)
        for key, value in moments.items()
    }
