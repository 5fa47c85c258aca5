"""Which nonlinearity a host uses, as far as its modules tell."""

from collections.abc import Iterable

from torch import nn

_OPERATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}


def operation_of(module: nn.Module) -> str | None:
    """Return the operation of a blueprint that computes what a module does, or None where none does."""
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return _OPERATIONS.get(type(module))


def activation_at(module: nn.Module, model: nn.Module) -> str | None:
    """Return the one nonlinearity inside a module, or else in its model; None where there is not exactly one."""
    return _only(module.modules()) or _only(model.modules())


def _only(modules: Iterable[nn.Module]) -> str | None:
    found = {name for name in map(operation_of, modules) if name is not None}
    return found.pop() if len(found) == 1 else None
