"""The normalised gradient norm: how large a change a layer wishes for, beside what it is."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.kasmina.gradients import dense
from esper.kasmina.shares import local
from esper.kasmina.signals.parameters import Trained, by_slot, row
from esper.kasmina.signals.signal import Scores


def gradient_to_weight(trained: Trained, optimizer: Optimizer) -> Scores:
    """Return the norm of each slot's gradients over the norm of its weights; 0 where all its weights are zero.

    The raw norm depends on the scale of the weights: halve those that a norm follows, and their gradient doubles. The ratio
    is the inverse of the one by which LARS scales the step of a layer.

    References:
        You, Gitman, Ginsburg 2017, "Large Batch Training of Convolutional Networks", equation 6.
    """
    if not trained:
        return Scores({})
    held = [p for parameters in trained.values() for p in parameters]
    gradients, weights = squared_norms([dense(p.grad) for p in held if p.grad is not None]), squared_norms(held)
    gradient, weight = by_slot(gradients, trained), by_slot(weights, trained)
    ratio = torch.where(weight > 0, gradient / weight, torch.zeros_like(weight)).sqrt()
    return Scores(dict(zip(trained, ratio, strict=True)))


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the square of each tensor's norm."""
    return row(torch._foreach_norm([local(tensor) for tensor in tensors])).square()
