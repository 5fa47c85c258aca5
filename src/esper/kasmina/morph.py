"""Swapping the class of a module in place, so that a wrapped host costs nothing and keeps its own keys."""

from collections.abc import Callable
from typing import Any

from torch import nn

from esper.errors import ConfigError

_morphed: dict[tuple[type, type], type[nn.Module]] = {}


def morphed(base: type[nn.Module], role: type) -> type[nn.Module]:
    """Return the subclass of ``base`` that plays ``role``; the same one for the same pair, so that graphs are shared."""
    if (base, role) in _morphed:
        return _morphed[base, role]
    body = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "_esper_base": base,
        "_esper_role": role,
    }
    _morphed[base, role] = type(base.__name__, (role, base), body)
    return _morphed[base, role]


def base_of(module: nn.Module) -> type[nn.Module]:
    """Return the class that the user gave a module."""
    base: type[nn.Module] = vars(type(module)).get("_esper_base", type(module))
    return base


def role_of(module: nn.Module) -> type | None:
    """Return the role that a module's class plays, or None where it is the user's own."""
    return getattr(type(module), "_esper_role", None)


def take_role(module: nn.Module, role: type) -> None:
    """Give a module the class that plays ``role``.

    Raises:
        ConfigError: If its class cannot be swapped, or somebody else changed it since it took a role.
    """
    if role_of(module) is not None:
        _check_own(module)
    try:
        module.__class__ = morphed(base_of(module), role)
    except TypeError as error:
        raise ConfigError(
            f"the class of {type(module).__name__} cannot be swapped", why=str(error), code="ESP-2201"
        ) from error


def drop_role(module: nn.Module) -> None:
    """Give a module its own class back.

    Raises:
        ConfigError: If somebody else changed its class since it took the role.
    """
    _check_own(module)
    module.__class__ = base_of(module)


def _check_own(module: nn.Module) -> None:
    if "_esper_base" not in vars(type(module)):
        raise ConfigError(
            f"the class of {type(module).__name__} was changed since",
            why="something else derived it from the class that Esper gave the module, as a parametrization does",
            todo="undo that first",
            code="ESP-2206",
        )


def _reduce(self: nn.Module, protocol: int) -> tuple[Callable[..., nn.Module], tuple[type, type | None], Any]:
    """Copy and pickle by the user's class and the role, as the subclass itself has no importable name."""
    return _revived, (base_of(self), role_of(self)), self.__getstate__()  # type: ignore[no-untyped-call]


def _revived(base: type[nn.Module], role: type) -> nn.Module:
    cls = morphed(base, role)
    return cls.__new__(cls)
