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
        entered: Shape of its first argument, where that is one floating tensor in every call, which nobody changed afterwards.
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
        entries: First arguments, with how often each had been changed in place when it entered.
    """

    sightings: dict[nn.Module, Sighting] = field(default_factory=dict)
    final: set[int] = field(default_factory=set)
    kept: list[Tensor] = field(default_factory=list)
    batch_first: bool = True
    centred: dict[int, nn.Module] = field(default_factory=dict)
    entries: list[tuple[Sighting, Tensor, int]] = field(default_factory=list)

    def end(self, final: set[int]) -> None:
        """Take note of what the model returned, and of what was changed in place on the way."""
        self.final = final
        for seen, tensor, version in self.entries:
            if _version(tensor) != version:
                seen.entered = None
        self.entries.clear()

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
            entries.setdefault(module, []).append((len(tells), _version(inputs[0]) if inputs else 0))

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
        seen = _note(record, module, output, tuple(tells[first:]))
        _note_entry(record, seen, inputs[0] if inputs else None, version)

    hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        record.kept.clear()
        record.entries.clear()


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


def _version(tensor: object) -> int:
    """Return how often a tensor was changed in place, which a graft that reads it would not survive."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


def _note_entry(record: Record, seen: Sighting, first: object, version: int) -> None:
    readable = isinstance(first, Tensor) and not first.is_nested and first.is_floating_point()
    entered = tuple(first.shape) if readable and isinstance(first, Tensor) else None
    seen.entered = entered if seen.calls == 1 or entered == seen.entered else None
    if isinstance(first, Tensor):
        record.entries.append((seen, first, version))


def _note(record: Record, module: nn.Module, output: object, tells: tuple[Tell, ...]) -> Sighting:
    seen = record.sightings.setdefault(module, Sighting(order=len(record.sightings)))
    seen.calls += 1
    seen.tells += tells
    if isinstance(output, Tensor) and not output.is_nested:
        record.kept.append(output)
        seen.shape, seen.dtype, seen.output = tuple(output.shape), output.dtype, id(output)
    return seen
