"""Memory that a state is copied to, so that training goes on while it is written."""

import mmap

import torch
from torch import Tensor

from esper.services.tolaria.checkpoint.layout import Layout

ALIGNED = 64
"""Bytes, as torch aligns its own memory."""
SPARE = 1.25
"""More than is needed now: a growing model needs more each time, and new memory costs more than the copy itself."""


class Staging:
    """One piece of memory, used again and again; it grows where a state does not fit."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def copied(self, tensors: list[Tensor], layouts: list[Layout]) -> list[Tensor]:
        """Copy tensors, from whatever device.

        Returns:
            The bytes of each, valid until the next call.
        """
        starts, total = [], 0
        for layout in layouts:
            starts.append(total)
            total += -(-layout.num_bytes // ALIGNED) * ALIGNED
        if total > self._memory.numel():
            self._memory = _reserved(int(total * SPARE))
        places = [self._memory[start : start + layout.num_bytes] for start, layout in zip(starts, layouts, strict=True)]
        for tensor, layout, place in zip(tensors, layouts, places, strict=True):
            if layout.num_bytes:
                _shaped(place, layout).copy_(tensor)
        return places


def _shaped(place: Tensor, layout: Layout) -> Tensor:
    typed = place.view(layout.dtype)
    return typed.view(layout.shape) if layout.stride is None else typed.as_strided(layout.shape, layout.stride)


def _reserved(size: int) -> Tensor:
    """Return memory in large pages, where the system has them: touching it for the first time is far cheaper."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
