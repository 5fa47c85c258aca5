"""Held-out losses over the batches of somebody else's loader."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from esper.services.tolaria.held_out import Validate

Losses: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""Returns the losses of the examples of one batch, as a 1-D tensor."""


def held_out(batches: Iterable[Any], losses: Losses) -> Validate:
    """Return a ``validate`` for ``esper.attach``: the losses of every example of some batches.

    Args:
        batches: Gives the same examples each time it is iterated over: a loader that does not shuffle, or a list. Never of
            the test split.
        losses: Takes the model and one batch, and returns one loss per example.
    """

    def validate(model: nn.Module) -> Tensor:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        return torch.cat([losses(model, moved(batch, device)).detach() for batch in batches])

    return validate


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch, whose containers may be nested, with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [moved(value, device) for value in batch]
    if isinstance(batch, tuple):
        values = [moved(value, device) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    return batch
