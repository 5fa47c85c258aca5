"""Held-out losses and metrics; never of a test split."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina.quiet import quiet_eval
from esper.services.tolaria.distributed.agreement import synchronise_buffers
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.trainer.batches import moved
from esper.services.tolaria.trainer.choices import check
from esper.services.tolaria.trainer.objective import Objective
from esper.services.tolaria.trainer.precision import Precision


@dataclass(frozen=True)
class Validation:
    """When metrics are measured, and which one says what is best.

    Attributes:
        every_epochs: Passes over the training data between two validations.
        every_steps: Optimizer steps between two validations; takes the place of ``every_epochs``.
        monitor: Metric that decides what is best: ``loss`` or one of ``metrics=``.
        mode: ``min`` or ``max``.

    Raises:
        ConfigError: If validations never come, or ``mode`` is neither.
    """

    every_epochs: int = 1
    every_steps: int | None = None
    monitor: str = "loss"
    mode: str = "min"

    def __post_init__(self) -> None:
        check(
            self.every_epochs >= 1, f"every_epochs={self.every_epochs}", why="it counts epochs", todo="give 1 or more"
        )
        steps = self.every_steps
        check(steps is None or steps >= 1, f"every_steps={steps}", why="it counts steps", todo="give 1 or more")
        check(self.mode in ("min", "max"), f"mode={self.mode!r}", why='a metric is best at its "min" or its "max"')


class Validator:
    """Measures a model on held-out batches and leaves no trace.

    Args:
        batches: Held out; the same ones in the same order each time they are iterated.
        objective: Losses and metrics.
        precision: Autocast, as in training.
        device: Where the model is.
        most: Batches that are looked at; None means all.
        team: The processes, each of which has held-out batches of its own; a metric is the mean over all examples.
    """

    def __init__(
        self, batches: Iterable[Any], objective: Objective, precision: Precision, device: torch.device,
        *, most: int | None = None, team: Team | None = None,
    ) -> None:  # fmt: skip
        self._team = team or Team()
        self._batches, self._objective, self._precision = batches, objective, precision
        self._device, self._most = device, most

    def losses(self, model: nn.Module) -> Tensor:
        """Return one loss per held-out example, as ``esper.attach`` wants it; the caller keeps the model quiet."""
        with self._precision.autocast():
            found = [self._objective.held_out(model, batch) for batch in self._moved()]
        return torch.cat(_some(found)).float()

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Return the mean of the losses and of every metric over all examples of all processes."""
        synchronise_buffers(self._team, model)
        with self._team.together("validating"), quiet_eval(model), self._precision.autocast():
            found = _some([self._objective.measured(model, batch) for batch in self._moved()])
            values = {name: torch.cat([each[name].double() for each in found]) for name in found[0]}
        if self._team.size == 1:
            return {name: float(each.mean()) for name, each in values.items()}
        rows = self._team.gather([number for each in values.values() for number in (float(each.sum()), len(each))])
        sums = [sum(column) for column in zip(*rows, strict=True)]
        return {name: sums[2 * at] / sums[2 * at + 1] for at, name in enumerate(values)}

    def _moved(self) -> Iterable[Any]:
        return (moved(batch, self._device) for batch in islice(iter(self._batches), self._most))


def _some(found: list[Any]) -> list[Any]:
    if found:
        return found
    raise ConfigError(
        "the validation loader is empty",
        why="or it has fewer examples, or batches, than there are processes",
        todo="give it at least one batch for each process, and one that can be iterated again",
        code="ESP-2162",
    )  # fmt: skip
