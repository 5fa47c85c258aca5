"""Gradients of a step at the one moment when they are whole and the weights have not moved."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from esper.kasmina.shares import local


def before_update(optimizer: Optimizer, look: Callable[[], None]) -> RemovableHandle:
    """Call ``look`` in every step of an optimizer before it moves a weight; after its closure, where it is given one."""

    def before_step(_optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            look()
            return None

        def looked_at() -> Any:
            loss = closure()
            look()
            return loss

        return args[:1], {**kwargs, "closure": looked_at}

    return optimizer.register_step_pre_hook(before_step)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm over all tensors, of whatever types and devices they are, of what this rank holds of them."""
    norms = torch._foreach_norm([local(tensor) for tensor in tensors])
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]))
    return total


def dense(gradient: Tensor) -> Tensor:
    """Return the values of a gradient, which an embedding may hold sparsely."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
