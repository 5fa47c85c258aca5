"""What a training ended with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from esper.services.tolaria.events import GrowthEvent


@dataclass(frozen=True)
class Measured:
    """One validation.

    Attributes:
        step: Optimizer step.
        values: ``loss`` and every metric.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class TrainingReport:
    """What a training ended with.

    Attributes:
        losses: Mean training loss of each epoch, a last one that was not whole included.
        events: What happened to the model.
        steps: Optimizer steps taken, those of undone grafts included.
        validations: Every validation, in order.
        best: Best value of the monitored metric, or None.
        best_step: Optimizer step of it.
        ended: Why the run ended: ``finished`` or ``stopped early``.
        run_id: Names the run.
        folder: Where it wrote, or None where nothing is left of it.
        checkpoint: The last checkpoint, or None.
        flops: Floating-point operations that Esper itself spent, by purpose.
        skipped_steps: Optimizer steps that the gradient scaler left out.
        log_failures: How often each logger failed.
        checkpoint_failures: Checkpoints that could not be written.
        average: The model with averaged weights, or None.
    """

    losses: tuple[float, ...]
    events: tuple[GrowthEvent, ...]
    steps: int
    validations: tuple[Measured, ...] = ()
    best: float | None = None
    best_step: int = 0
    ended: str = "finished"
    run_id: str = ""
    folder: Path | None = None
    checkpoint: Path | None = None
    flops: Mapping[str, int] = field(default_factory=dict)
    skipped_steps: int = 0
    log_failures: Mapping[str, int] = field(default_factory=dict)
    checkpoint_failures: int = 0
    average: nn.Module | None = None
