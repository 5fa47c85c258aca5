"""Batches in the forms that people use, and what a model says to them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import ConfigError


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with every tensor on a device; containers of any depth keep their kind."""
    if isinstance(batch, Mapping):
        items = {key: moved(value, device) for key, value in batch.items()}
        return items if type(batch) is dict else _like(batch, items)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved(value, device) for value in batch)
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") and callable(batch.to) else batch


def answered(model: nn.Module, batch: Any, *, target: str) -> tuple[Tensor, Tensor]:
    """Run the model on a batch and return its outputs and the targets.

    Args:
        model: Called with the inputs of a pair, or with everything but the target of a mapping, by name.
        batch: A pair ``(inputs, targets)``, or a mapping with the targets under ``target``.
        target: Name of the targets in a mapping.

    Raises:
        ConfigError: If the batch is neither.
    """
    if isinstance(batch, Mapping) and target in batch:
        outputs = model(**{name: value for name, value in batch.items() if name != target})
        return _logits(outputs), batch[target]
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return _logits(model(batch[0])), batch[1]
    raise ConfigError(
        f"a batch is {_described(batch)}",
        why=f"it must be (inputs, targets), or a mapping with targets under {target!r}",
        todo="name the key with target=, or give loss= a function of (model, batch)",
        code="ESP-2701",
    )


def inputs_of(batch: Any, *, target: str) -> Any:
    """Return what the model is shown of a batch, as ``esper.wrap`` takes it for ``example=``; None where it is not known."""
    if isinstance(batch, Mapping) and target in batch:
        return {name: value for name, value in batch.items() if name != target}
    return batch[0] if isinstance(batch, (list, tuple)) and len(batch) == 2 else None


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise ConfigError(
        f"the model returned a {type(outputs).__name__}",
        why="a loss by name needs a tensor, or something with logits",
        todo="give loss= a function of (model, batch)",
        code="ESP-2701",
    )


def _like(batch: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the batch's own kind where that can be made from a plain one."""
    try:
        return type(batch)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(str, batch))}"
    if isinstance(batch, (list, tuple)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"
