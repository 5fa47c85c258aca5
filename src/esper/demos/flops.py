"""Counting what training costs: torch counts one step of each topology, and every step that is taken is added up."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina import MorphableModel, topology
from esper.kasmina.quiet import quiet, quiet_eval


def step_flops(model: nn.Module, inputs: Tensor, labels: Tensor) -> int:
    """Return the floating-point operations of one training step, forward and backward.

    Matrix products and convolutions count, a multiply-add as 2; element-wise work, the optimizer's too, counts nothing, in
    every arm alike. The model is left as it was: no gradient is accumulated.

    Args:
        model: In any state.
        inputs: One batch.
        labels: Its labels.
    """
    with quiet(model), FlopCounterMode(display=False) as counter:
        model.train()
        loss = F.cross_entropy(model(inputs), labels)
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return int(counter.get_total_flops())


def forward_flops(model: nn.Module, inputs: Tensor) -> int:
    """Return the floating-point operations of one forward pass without gradient."""
    with quiet_eval(model), FlopCounterMode(display=False) as counter:
        model(inputs)
    return int(counter.get_total_flops())


class FlopMeter:
    """What a training has spent.

    Args:
        model: The model, which may grow.
        inputs: A batch like those that are trained on.
        labels: Its labels.
        held_out: Inputs that every newborn is probed on.

    Attributes:
        spent: Floating-point operations so far, those of undone grafts included.
        per_step: Of one step with the model as it is now.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, held_out: Tensor) -> None:
        self.spent = 0
        self._model, self._inputs, self._labels, self._held_out = model, inputs, labels, held_out
        self._steps: dict[object, int] = {}
        self.per_step = self._step_now()
        self._forward = forward_flops(model, held_out)

    def step(self) -> None:
        """Add one training step."""
        self.spent += self.per_step

    def changed(self) -> None:
        """Take note that the model may be another one now; a newborn's path was probed once on the held-out inputs."""
        self.per_step = self._step_now()
        forward = forward_flops(self._model, self._held_out)
        self.spent += max(0, forward - self._forward)
        self._forward = forward

    def _step_now(self) -> int:
        key = _shape(self._model)
        if key not in self._steps:
            self._steps[key] = step_flops(self._model, self._inputs, self._labels)
        return self._steps[key]


def _shape(model: nn.Module) -> object:
    """Return what the cost of a step depends on."""
    if not isinstance(model, MorphableModel):
        return None
    return tuple((entry.slot, entry.seed_idx, entry.ir, entry.active) for entry in topology(model))
