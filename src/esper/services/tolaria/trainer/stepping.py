"""One optimizer step, whole: forward, backward, unscale, clip, step, schedule."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
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
        net: What is called in training: the DistributedDataParallel around the model; None for the model itself.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler | None
    objective: Objective
    precision: Precision
    clipping: Clipping
    net: nn.Module | None = None

    def step(self, batches: Sequence[Any], weights: Sequence[float] = ()) -> Tensor:
        """Take one optimizer step over the gradients of all batches.

        Args:
            batches: Their losses are averaged.
            weights: Of each batch in the mean over processes; 1 by default.

        Returns:
            The mean of their losses, detached; never synchronised.
        """
        losses = []
        weights = weights or [1.0] * len(batches)
        for place, (batch, weight) in enumerate(zip(batches, weights, strict=True), start=1):
            with self._reduced(place == len(batches)):
                loss = self._loss(batch, weight)
                self.precision.backward(loss / len(batches) if len(batches) > 1 else loss)
            losses.append(loss.detach())
        self.precision.unscale(self.optimizer)
        self.clipping.apply(self.optimizer)
        if self.precision.step(self.optimizer) and self.schedule is not None and by_step(self.schedule):
            self.schedule.step()
        self.optimizer.zero_grad()
        return sum(losses[1:], losses[0]) / len(losses)

    def _loss(self, batch: Any, weight: float) -> Tensor:
        with self.precision.autocast():
            loss = self.objective.training(self.model if self.net is None else self.net, batch)
        return loss if weight == 1.0 else loss * weight

    def _reduced(self, last: bool) -> AbstractContextManager[object]:
        """Let gradients be averaged over processes in the last pass before a step only."""
        if last or not isinstance(self.net, DistributedDataParallel):
            return nullcontext()
        return self.net.no_sync()
