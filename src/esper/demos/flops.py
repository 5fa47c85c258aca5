"""Counting what training costs: torch counts one step of each topology, and every step that is taken is added up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from esper.demos.scoring import losses
from esper.kasmina import MorphableModel, topology
from esper.kasmina.flop_counter import FlopCounter
from esper.kasmina.quiet import quiet, quiet_eval

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From outputs and labels to losses, which are averaged."""


def step_flops(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss = losses) -> int:
    """Return the floating-point operations of one training step, forward and backward.

    Matrix products and convolutions count, a multiply-add as 2; element-wise work, the optimizer's too, counts nothing, in
    every arm alike. The model is left as it was: no gradient is accumulated.

    Args:
        model: In any state.
        inputs: One batch.
        labels: Its labels.
        loss: What is trained for.
    """
    with quiet(model), FlopCounter() as counter:
        model.train()
        torch.autograd.grad(loss(model(inputs), labels).mean(), [p for p in model.parameters() if p.requires_grad])
    return int(counter.total)


def forward_flops(model: nn.Module, inputs: Tensor) -> int:
    """Return the floating-point operations of one forward pass without gradient."""
    with quiet_eval(model), FlopCounter() as counter:
        model(inputs)
    return int(counter.total)


@dataclass(frozen=True)
class Price:
    """What one topology costs.

    Attributes:
        step: Of one training step.
        held_out: Of one forward pass over the held-out inputs.
    """

    step: int
    held_out: int


class FlopMeter:
    """What a training has spent.

    Args:
        model: The model, which may grow.
        inputs: A batch like those that are trained on.
        labels: Its labels.
        held_out: Inputs that every newborn is probed on.
        loss: What is trained for.

    Attributes:
        spent: Floating-point operations so far, those of undone grafts included.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, held_out: Tensor, loss: Loss = losses) -> None:
        self.spent = 0
        self._loss = loss
        self._model, self._inputs, self._labels, self._held_out = model, inputs, labels, held_out
        self._prices: dict[object, Price] = {}
        self._price = self._price_now()

    @property
    def per_step(self) -> int:
        """Of one step with the model as it is now."""
        return self._price.step

    def step(self) -> None:
        """Add one training step."""
        self.spent += self._price.step

    def changed(self) -> None:
        """Take note that the model may be another one now; a newborn's path was probed once on the held-out inputs."""
        before, self._price = self._price, self._price_now()
        self.spent += max(0, self._price.held_out - before.held_out)

    def _price_now(self) -> Price:
        key = _shape(self._model)
        if key not in self._prices:
            step = step_flops(self._model, self._inputs, self._labels, self._loss)
            self._prices[key] = Price(step, forward_flops(self._model, self._held_out))
        return self._prices[key]


def _shape(model: nn.Module) -> object:
    """Return what the price of a step depends on: what has grown, and what learns."""
    entries = topology(model) if isinstance(model, MorphableModel) else ()
    grown = tuple((entry.slot, entry.seed_idx, entry.ir, entry.active) for entry in entries)
    return grown, tuple(parameter.requires_grad for parameter in model.parameters())
