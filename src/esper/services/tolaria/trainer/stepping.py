"""One optimizer step, whole: forward, backward, unscale, clip, step, schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.services.tolaria.trainer.clipping import Clipping
from esper.services.tolaria.trainer.objective import Objective
from esper.services.tolaria.trainer.precision import Precision
from esper.services.tolaria.trainer.schedules import by_step


@dataclass(frozen=True)
class Stepper:
    """Takes optimizer steps on a model.

    Attributes:
        model: Trained.
        optimizer: Trains it.
        schedule: Steers the optimizer, or None.
        objective: What is minimised.
        precision: Autocast and scaler.
        clipping: Limits on gradients.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None
    objective: Objective
    precision: Precision
    clipping: Clipping

    def step(self, batches: Sequence[Any]) -> Tensor:
        """Take one optimizer step over the gradients of all batches.

        Returns:
            The mean of their losses, detached; never synchronised.
        """
        losses = []
        for batch in batches:
            with self.precision.autocast():
                loss = self.objective.training(self.model, batch)
            self.precision.backward(loss / len(batches) if len(batches) > 1 else loss)
            losses.append(loss.detach())
        self.precision.unscale(self.optimizer)
        self.clipping.apply(self.optimizer)
        if self.precision.step(self.optimizer) and self.schedule is not None and by_step(self.schedule):
            self.schedule.step()
        self.optimizer.zero_grad()
        return sum(losses[1:], losses[0]) / len(losses)
