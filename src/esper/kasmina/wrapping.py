"""Wrapping a model in place, and giving it back."""

from torch import nn

from esper.errors import ConfigError
from esper.kasmina.discovery import Wanted, check_wanted, run_example
from esper.kasmina.graft import detach, topology
from esper.kasmina.model import MorphableModel, ObservingModel, settle
from esper.kasmina.morph import drop_role, role_of, take_role
from esper.kasmina.placement import KEY, Placement, placement_of
from esper.ports import Library

NAMES = ("esper", "load_kernel", "apply_adaptation")
"""What a wrapped model has more than its host; a host must not use these names itself."""


def wrap(model: nn.Module, slots: Wanted = "auto", example: object = None, library: Library | None = None) -> nn.Module:
    """Give a model slots, in place; it computes what it did, with its own state_dict keys, until something grows.

    Args:
        model: Any module. Its class becomes a subclass of its own class and of ``MorphableModel``.
        slots: ``"auto"``, name patterns, module types, or ``esper.Slot`` objects.
        example: One input batch, from which shapes are learned now; without it the first forward pass is watched.
        library: Where ``load_kernel`` reads; ``attach`` brings its own.

    Returns:
        The same model.

    Raises:
        ConfigError: If it is wrapped already, cannot be wrapped, or a pattern matches nothing.
    """
    _check_host(model)
    check_wanted(model, slots)
    placement = Placement(wanted=slots, library=library)
    if example is not None:
        settle(model, placement, run_example(model, example))
    take_role(model, MorphableModel if placement.ready else ObservingModel)
    vars(model)[KEY] = placement
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Give the host back as it was before ``wrap``: grafts are taken out, its class is its own again.

    Raises:
        ConfigError: If the model is not wrapped, or a run is still attached.
    """
    if placement_of(model).grower is not None:
        raise ConfigError("a run is attached to this model", todo="call growth.close() first", code="ESP-2203")
    for entry in topology(model):
        detach(model, entry.slot, entry.seed_idx)
    del vars(model)[KEY]
    drop_role(model)
    return model


def _check_host(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{type(model).__name__} is not a torch module", code="ESP-2200")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ConfigError(
            f"this is a {type(model).__name__}",
            why="the slots belong to the model inside",
            todo="esper.wrap(model) first, then DistributedDataParallel(model), and give that to esper.attach",
            code="ESP-2208",
        )
    if isinstance(model, MorphableModel):
        raise ConfigError("this model is wrapped already", todo="esper.unwrap(model) first", code="ESP-2202")
    if role_of(model) is not None:
        raise ConfigError(
            "this module is part of a wrapped model",
            why="something has grown there",
            todo="wrap one of them",
            code="ESP-2207",
        )
    taken = [name for name in NAMES if hasattr(model, name)]
    if taken:
        raise ConfigError(
            f"the model has {', '.join(taken)} of its own", why="a wrapped model needs these names", code="ESP-2204"
        )
    if type(model).__module__.startswith(("torch.jit", "torch._dynamo")):
        raise ConfigError(
            "a scripted or compiled module cannot grow",
            why="its code is fixed",
            todo="wrap the module that it was made from, and compile that afterwards",
            code="ESP-2205",
        )
