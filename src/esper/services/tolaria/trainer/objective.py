"""What is minimised, and what is measured beside it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.errors import ConfigError
from esper.services.tolaria.trainer.batches import answered
from esper.services.tolaria.trainer.choices import chosen

LossFunction = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to one loss per example, or to their mean."""
Metric = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets to one value per example."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each prediction; classes lie in dimension 1, or last where only that fits."""
    if outputs.ndim > 2 and outputs.shape[:1] + outputs.shape[2:] != targets.shape == outputs.shape[:-1]:
        outputs = outputs.movedim(-1, 1)
    return functional.cross_entropy(outputs, targets, reduction="none")


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each number."""
    return functional.mse_loss(outputs, targets, reduction="none")


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return for each prediction 1 where its largest class is the target, and 0 otherwise."""
    classes = -1 if outputs.ndim == 2 or outputs.shape[:-1] == targets.shape else 1
    return (outputs.argmax(dim=classes) == targets).float()


LOSSES: dict[str, Metric] = {"cross_entropy": cross_entropy, "mse": mse}
METRICS: dict[str, Metric] = {"accuracy": accuracy}


class Objective:
    """A loss and its metrics, on batches of any form.

    Args:
        loss: A name of ``LOSSES``, or the user's function of model and batch.
        metrics: Values per example, by name.
        target: Name of the targets in batches that are mappings.
    """

    def __init__(self, loss: str | LossFunction, metrics: Mapping[str, Metric], *, target: str) -> None:
        self._loss, self._metrics, self._target = loss, metrics, target

    def training(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch."""
        return self._losses(model, batch)[0].mean()

    def held_out(self, model: nn.Module, batch: Any) -> Tensor:
        """Return one loss per example; one per batch where the user's own function gives only that."""
        losses = self._losses(model, batch)[0]
        return _per_example(losses) if losses.ndim else losses.reshape(1)

    def measured(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return the losses, under ``loss``, and every metric, one value per example."""
        losses, answer = self._losses(model, batch)
        found = {"loss": _per_example(losses) if losses.ndim else losses.reshape(1)}
        if self._metrics:
            outputs, targets = answer or answered(model, batch, target=self._target)  # the user's own loss keeps them
            found.update({name: _checked(name, metric(outputs, targets)) for name, metric in self._metrics.items()})
        return found

    def _losses(self, model: nn.Module, batch: Any) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        if isinstance(self._loss, str):
            answer = answered(model, batch, target=self._target)
            return chosen("loss", self._loss, LOSSES)(*answer), answer
        losses = self._loss(model, batch)
        if not isinstance(losses, Tensor):
            raise ConfigError(
                f"loss returned a {type(losses).__name__}",
                why="it must return a tensor: one loss per example, or their mean",
                code="ESP-2702",
            )
        return losses, None


def _per_example(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(dim=1)


def _checked(name: str, values: object) -> Tensor:
    if isinstance(values, Tensor):
        values = values.detach().to(torch.float32) if not values.is_floating_point() else values.detach()
        return _per_example(values) if values.ndim else values.reshape(1)
    raise ConfigError(
        f"metric {name} returned a {type(values).__name__}",
        why="it must return a tensor with one value per example, or their mean",
        code="ESP-2702",
    )
