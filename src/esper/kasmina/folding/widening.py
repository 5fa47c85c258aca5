"""Grafts that are more hidden units become them: their rows and columns join those of the host's own two layers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from esper.ir import INPUT, Reads
from esper.kasmina.activations import operation_of
from esper.kasmina.folding.steps import Step, steps_of
from esper.kasmina.grafted import Graft

Seeded = tuple[str, Graft]
"""A graft with the index of its seed."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def widened(host: nn.Module, grafts: Sequence[Seeded], is_own: Callable[[Tensor], bool]) -> list[Seeded]:
    """Let a host take in the grafts that are hidden units of its own kind.

    Those behind a graft that reads what the host returns stay beside it, since that one must not see them.

    Args:
        host: The module of a slot, of a model that nobody else uses; it is changed.
        grafts: What is joined to it, in order.
        is_own: Whether nothing else uses a parameter.

    Returns:
        The grafts that are left.
    """
    left = list(grafts)
    while left and (_is_silent(left[0][1]) or _taken_in(host, left[0][1], is_own)):
        del left[0]
    return left


def _is_silent(graft: Graft) -> bool:
    return not graft.active or float(graft.alpha) == 0.0


def _taken_in(host: nn.Module, graft: Graft, is_own: Callable[[Tensor], bool]) -> bool:
    layers = _layers(host)
    if layers is None or graft.kernel.ir.reads is not Reads.INPUT:
        return False
    reading, activation, writing = layers
    units = _units(graft)
    own = [p for layer in (reading, writing) for p in layer.parameters()]
    if units is None or units[1].op != activation or not all(map(is_own, own)):
        return False
    _more_rows(reading, units[0])
    _more_columns(writing, units[2])
    return True


def _layers(host: nn.Module) -> tuple[nn.Linear, str, nn.Linear] | None:
    """Return the two linear layers of a host that is nothing else, and the nonlinearity between them."""
    if type(host) is not nn.Sequential or len(host) != 3:
        return None
    reading, between, writing = host
    activation = operation_of(between)
    if activation is None or not isinstance(reading, nn.Linear) or not isinstance(writing, nn.Linear):
        return None
    alike = all(
        type(layer) is nn.Linear and set(layer._parameters) == {"weight", "bias"} for layer in (reading, writing)
    )
    hooked = any(getattr(part, kind) for part in host for kind in _HOOKS)
    return (reading, activation, writing) if alike and not hooked else None


def _units(graft: Graft) -> tuple[Step, Step, Step] | None:
    """Return the linear map, the nonlinearity and the linear map that a graft is, or None where it is something else."""
    steps = steps_of(graft.kernel, float(graft.alpha))
    if len(steps) != 3 or (steps[0].op, steps[2].op) != ("linear", "linear"):
        return None
    chained = [step.inputs for step in steps] == [(INPUT,), (steps[0].name,), (steps[1].name,)]
    return (steps[0], steps[1], steps[2]) if chained else None


def _more_rows(layer: nn.Linear, step: Step) -> None:
    own, added = layer._parameters["bias"], step.tensors.get("bias")
    if own is not None or added is not None:
        silent = layer.weight.new_zeros(layer.out_features), layer.weight.new_zeros(len(step.tensors["weight"]))
        layer.bias = _joined(silent[0] if own is None else own, silent[1] if added is None else added, 0)
    layer.weight = _joined(layer.weight, step.tensors["weight"], 0)
    layer.out_features = layer.weight.shape[0]


def _more_columns(layer: nn.Linear, step: Step) -> None:
    if (added := step.tensors.get("bias")) is not None:
        own = layer._parameters["bias"]
        total = added.detach() if own is None else own.detach() + added.detach().to(own.dtype)
        learns = added.requires_grad or (own is not None and own.requires_grad)
        layer.bias = nn.Parameter(total, requires_grad=learns)
    layer.weight = _joined(layer.weight, step.tensors["weight"], 1)
    layer.in_features = layer.weight.shape[1]


def _joined(own: Tensor, added: Tensor, axis: int) -> nn.Parameter:
    together = torch.cat([own.detach(), added.detach().to(own.dtype)], axis)
    return nn.Parameter(together, requires_grad=own.requires_grad or added.requires_grad)
