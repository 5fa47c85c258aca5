"""One watched forward pass: which modules run, how often, in which order, and what comes out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from esper.ir import Layout
from esper.kasmina.layouts import Tell, layout_of, tell_of

CENTRING = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass
class Sighting:
    """What was seen of one module.

    Attributes:
        calls: How often it ran.
        order: Position among first calls, by the time of their return.
        shape: Shape of its output, or None where that is not one tensor.
        entered: Shape of its first argument, where that is one floating tensor in every call, which it left alone.
        dtype: Type of its output.
        tells: What the layers inside say of its layout, in forward order.
        output: Identity of the output tensor, to find the model's own.
    """

    calls: int = 0
    order: int = 0
    shape: tuple[int, ...] | None = None
    entered: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    tells: tuple[Tell, ...] = ()
    output: int = 0


@dataclass
class Record:
    """What one forward pass showed.

    Attributes:
        sightings: By module.
        final: Identities of the tensors that the model returned.
        kept: Outputs, held so that identities stay unique while the record lives.
        batch_first: Whether no layer said that its first axis is the sequence.
        centred: Norms that take the mean of every channel away, by the identity of what enters them.
    """

    sightings: dict[nn.Module, Sighting] = field(default_factory=dict)
    final: set[int] = field(default_factory=set)
    kept: list[Tensor] = field(default_factory=list)
    batch_first: bool = True
    centred: dict[int, nn.Module] = field(default_factory=dict)

    def layout(self, seen: Sighting) -> Layout | None:
        """Return the layout of a module's output, or None where the layers inside do not settle it."""
        return layout_of(seen.shape or (), seen.tells, batch_first=self.batch_first)


@contextmanager
def watched(model: nn.Module) -> Iterator[Record]:
    """Watch every module of a model inside the block.

    The hooks are torch's global ones: a module that has hooks of its own leaves its fast path, and computes other bits.
    """
    record = Record()
    own = set(model.modules())
    tells: list[Tell] = []
    entries: dict[nn.Module, list[tuple[int, int]]] = {}

    def enter(module: nn.Module, inputs: Any) -> None:
        if module in own:
            entries.setdefault(module, []).append((len(tells), _version(inputs)))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if module not in own:
            return
        if isinstance(module, CENTRING):
            record.centred.update((id(tensor), module) for tensor in tensors_in(inputs))
        record.batch_first = record.batch_first and getattr(module, "batch_first", True) is not False
        tell = tell_of(module, output)
        if tell is not None:
            tells.append(tell)
        first, version = entries[module].pop()
        entered = _shape_of_first(inputs) if _version(inputs) == version else None
        _note(record, module, output, entered, tuple(tells[first:]))

    hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        record.kept.clear()


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield every tensor in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _version(inputs: tuple[object, ...]) -> int:
    """Return how often a module's first argument was changed in place, which a graft that reads it would not survive."""
    first = inputs[0] if inputs else None
    return first._version if isinstance(first, Tensor) and not first.is_inference() else 0


def _shape_of_first(inputs: tuple[object, ...]) -> tuple[int, ...] | None:
    first = inputs[0] if inputs else None
    readable = isinstance(first, Tensor) and not first.is_nested and first.is_floating_point()
    return tuple(first.shape) if readable and isinstance(first, Tensor) else None


def _note(
    record: Record, module: nn.Module, output: object, entered: tuple[int, ...] | None, tells: tuple[Tell, ...]
) -> None:
    seen = record.sightings.setdefault(module, Sighting(order=len(record.sightings), entered=entered))
    seen.calls += 1
    seen.entered = entered if entered == seen.entered else None
    seen.tells += tells
    if isinstance(output, Tensor) and not output.is_nested:
        record.kept.append(output)
        seen.shape, seen.dtype, seen.output = tuple(output.shape), output.dtype, id(output)
