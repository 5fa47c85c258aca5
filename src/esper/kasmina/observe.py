"""One watched forward pass: which modules run, how often, in which order, and what comes out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
)
FEATURES_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention)


@dataclass
class Sighting:
    """What was seen of one module.

    Attributes:
        calls: How often it ran.
        order: Position among first calls, by the time of their return.
        shape: Shape of its output, or None where that is not one tensor.
        dtype: Type of its output.
        inputs: Number of elements per position axis of its first tensor argument, as a shape.
        family: ``first`` or ``last`` for where the last layer inside puts its channels, None where that is not known.
        output: Identity of the output tensor, to find the model's own.
    """

    calls: int = 0
    order: int = 0
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    family: str | None = None
    output: int = 0


@dataclass
class Record:
    """What one forward pass showed.

    Attributes:
        sightings: By module.
        final: Identities of the tensors that the model returned.
        kept: Outputs, held so that identities stay unique while the record lives.
    """

    sightings: dict[nn.Module, Sighting] = field(default_factory=dict)
    final: set[int] = field(default_factory=set)
    kept: list[Tensor] = field(default_factory=list)


@contextmanager
def watched(model: nn.Module) -> Iterator[Record]:
    """Watch every module of a model inside the block, with hooks that are gone after it."""
    record = Record()
    families: list[str] = []
    entries: dict[nn.Module, list[int]] = {}

    def enter(module: nn.Module, _inputs: Any) -> None:
        entries.setdefault(module, []).append(len(families))

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        family = family_of(module)
        if family is not None:
            families.append(family)
        since = entries[module].pop()
        _note(record, module, output, families[-1] if len(families) > since else None)

    hooks = []
    for module in model.modules():
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        record.kept.clear()


def family_of(module: nn.Module) -> str | None:
    """Return where a layer puts its channels, ``first`` or ``last``; None for layers that leave them where they are."""
    if isinstance(module, CHANNELS_FIRST):
        return "first"
    return "last" if isinstance(module, FEATURES_LAST) else None


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


def _note(record: Record, module: nn.Module, output: object, family: str | None) -> None:
    seen = record.sightings.setdefault(module, Sighting(order=len(record.sightings)))
    seen.calls += 1
    seen.family = family or seen.family
    if isinstance(output, Tensor) and not output.is_nested:
        record.kept.append(output)
        seen.shape, seen.dtype, seen.output = tuple(output.shape), output.dtype, id(output)
