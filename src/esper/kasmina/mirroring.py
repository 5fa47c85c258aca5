"""Giving a copy of a wrapped model the grafts of the original."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina.graft import restore_topology, topology
from esper.kasmina.model import MorphableModel
from esper.kasmina.morph import base_of, take_role
from esper.kasmina.placement import CHILD, KEY, Placement, placement_of


def check_mirror(model: nn.Module, mirror: nn.Module) -> None:
    """Refuse what is no copy of a wrapped model.

    Raises:
        ConfigError: If it is of another class, or has other parameters than the host.
    """
    own, other = _host_shapes(model), _host_shapes(mirror)
    odd = [name for name in own.keys() | other.keys() if own.get(name) != other.get(name)]
    if base_of(mirror) is not base_of(model) or odd:
        raise ConfigError(
            f"a {base_of(mirror).__name__} is no copy of this {base_of(model).__name__}",
            why=f"{min(odd)} is not the same in both" if odd else "their classes differ",
            todo="make it from the very model that is attached",
            code="ESP-2117",
        )


def mirror_grafts(model: nn.Module, mirror: nn.Module) -> None:
    """Make the grafts of a copy exactly those of the model; those that are new there get the model's present values.

    Grafts that the copy has already keep their values and objects.

    Args:
        model: Wrapped.
        mirror: A copy of it, made before or after it was wrapped; it gets slots of its own.
    """
    _mirror_slots(model, mirror)
    known = {(entry.slot, entry.seed_idx): entry.ir for entry in topology(mirror)}
    restore_topology(mirror, topology(model))
    values = _all_tensors(model)
    born = [e for e in topology(model) if known.get((e.slot, e.seed_idx)) != e.ir]
    prefixes = tuple(f"{entry.slot}.{CHILD}.{entry.seed_idx}." for entry in born)
    with torch.no_grad():
        for name, tensor in _all_tensors(mirror).items():
            if name.startswith(prefixes):
                tensor.copy_(values[name])


def _mirror_slots(model: nn.Module, mirror: nn.Module) -> None:
    own = placement_of(model)
    slots = {name: replace(place, module=mirror.get_submodule(name)) for name, place in own.slots.items()}
    if not isinstance(mirror, MorphableModel) or own.ready:
        take_role(mirror, MorphableModel)
    vars(mirror)[KEY] = Placement(wanted=own.wanted, slots=slots, ready=own.ready)


def _host_shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters() if f"{CHILD}." not in name}


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
