"""Which torch body each operation has."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from esper.blueprints import operations
from esper.errors import ConfigError, NotFound, VersionTaken
from esper.ir import ops
from esper.ir.birth import Use

Body: TypeAlias = Callable[..., Tensor]
"""Takes the inputs of a node and returns its output; an nn.Module where it owns tensors; can be pickled."""
BodyFactory: TypeAlias = Callable[[Use, Mapping[str, Tensor]], Body]
"""Makes the body of one node from its place and its tensors."""


def _scale(use: Use, tensors: Mapping[str, Tensor]) -> Body:
    return operations.Scale(use.attrs.number("value"))


def _attention(use: Use, tensors: Mapping[str, Tensor]) -> Body:
    return operations.Attention(use.attrs.integer("heads"), use.attrs.flag("causal"), use.layout.is_channels_first)


def _always(body: Body) -> BodyFactory:
    """Return the same function for every place."""
    return lambda use, tensors: body


_FACTORIES: dict[str, BodyFactory] = {
    "linear": operations.Linear,
    "conv": operations.Conv,
    "batch_norm": operations.BatchNorm,
    "group_norm": operations.GroupNorm,
    "layer_norm": operations.LayerNorm,
    "rms_norm": operations.RmsNorm,
    "relu": _always(operations.relu),
    "gelu": _always(operations.gelu),
    "silu": _always(operations.silu),
    "sigmoid": _always(operations.sigmoid),
    "tanh": _always(operations.tanh),
    "add": _always(operations.add),
    "mul": _always(operations.mul),
    "position_mean": _always(operations.position_mean),
    "scale": _scale,
    "attention": _attention,
}


def body_of(op: str, use: Use, tensors: Mapping[str, Tensor]) -> Body:
    """Return the torch body of one node.

    Raises:
        NotFound: If the operation is an extension whose body was not installed.
    """
    factory = _FACTORIES.get(op)
    if factory is None:
        raise NotFound(f"operation {op!r} has no torch body", todo="Install it with esper.blueprints.register_body.")
    return factory(use, tensors)


def register_body(op: str, factory: BodyFactory) -> None:
    """Install the torch body of an extension.

    Args:
        op: Name of an operation that `esper.ir.ops.register` installed.
        factory: Makes the body of one node; one that owns tensors returns an nn.Module that adopts them.

    Raises:
        ConfigError: If the operation belongs to the closed set.
        NotFound: If there is no such operation.
        VersionTaken: If another body is installed.
    """
    if ops.get(op).trusted:
        raise ConfigError(f"the body of {op!r} cannot be replaced", why="it belongs to the closed set")
    if _FACTORIES.setdefault(op, factory) is not factory:
        raise VersionTaken(f"operation {op!r} has a torch body already", todo="Unregister it first.")


def unregister_body(op: str) -> None:
    """Take the torch body of an extension out again; nothing happens where there is none.

    Raises:
        ConfigError: If the operation belongs to the closed set.
    """
    if op in ops.names() and ops.get(op).trusted:
        raise ConfigError(f"the body of {op!r} cannot be removed", why="it belongs to the closed set")
    _FACTORIES.pop(op, None)
