"""How a model is trained: the tree of what each part can be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from esper.errors import ConfigError
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.consultation import Decides
from esper.services.tolaria.trainer.averaging import Averaging
from esper.services.tolaria.trainer.choices import check, check_name_or_function, chosen
from esper.services.tolaria.trainer.clipping import Clipping
from esper.services.tolaria.trainer.keeping import Checkpoints
from esper.services.tolaria.trainer.loggers.base import Logger
from esper.services.tolaria.trainer.loggers.named import check_loggers
from esper.services.tolaria.trainer.objective import LOSSES, METRICS, LossFunction, Metric
from esper.services.tolaria.trainer.optimizers import OPTIMIZERS, OptimizerFactory
from esper.services.tolaria.trainer.precision import PRECISIONS
from esper.services.tolaria.trainer.schedules import SCHEDULES, ScheduleFactory
from esper.services.tolaria.trainer.stopping import Stopping
from esper.services.tolaria.trainer.validation import Validation

TWIN = "twin"
"""A control that goes by name."""


@dataclass(frozen=True)
class TrainerConfig:
    """How a model is trained.

    Attributes:
        num_epochs: Passes over the training data.
        tamiyo_url: Address of a controller; None means the one in this process.
        max_steps: Planned optimizer steps; takes the place of ``num_epochs``.
        optimizer: A name (``sgd``, ``adam``, ``adamw``, ``rmsprop``, ``adagrad``), or a function of the model.
        optimizer_options: Further arguments of an optimizer by name.
        learning_rate: Of an optimizer by name; the peak of the schedule.
        schedule: A name (``cosine``, ``onecycle``, ``warmup_cosine``, ``plateau``, ``none``), or a function of the optimizer
            and the planned steps.
        schedule_options: Further arguments of a schedule by name.
        loss: ``cross_entropy``, ``mse``, or a function of model and batch that returns one loss per example or their mean.
        metrics: Names (``accuracy``), or functions of outputs and targets by name, measured at validations.
        target: Name of the targets in batches that are mappings.
        held_out_ratio: Share of the data that is held out where no validation loader is given; never trained on.
        validation: When metrics are measured, and which one says what is best.
        stopping: When a run ends before its time, or None.
        precision: ``float32``; ``bfloat16`` or ``float16`` for autocast, the latter with a gradient scaler.
        accumulate: Batches whose gradients make one optimizer step; at the end of a pass, those that are left.
        clipping: Limits on gradients.
        averaging: Exponential average of the weights, which validations then measure; or None.
        device: ``auto``, or a name such as ``cuda:1``.
        seed: Of the split, the order of the data, and the global generators during the run.
        ddp: Further arguments of ``DistributedDataParallel``, where several processes train.
        deterministic: Whether torch uses deterministic algorithms only during the run.
        every: Optimizer steps between boundaries; None means twenty boundaries in the run.
        budget: How much the model may grow.
        controller: ``plateau``, or an object with ``decide(packet)``.
        control: What a graft is held against: ``twin`` for a training without it on the same batches, at once the cost of a
            second model; None for graft-free windows of the run.
        loggers: Names (``tensorboard``, ``wandb``, ``mlflow``), or objects with ``log(metrics, step)``.
        log_every: Optimizer steps between two lines of the training log; each waits for the device.
        checkpoints: When they are written, or None for never.
        resume: Checkpoint to go on from: ``latest`` of all runs below ``root``, a path to one, or the folder of a run.
        progress: Whether to show a bar on a terminal and plain lines elsewhere.
        fast_dev_run: Whether to try everything on a few batches, one graft included, on a copy of the model and in a
            temporary folder.
        root: Folder for what the run writes.
        attach: Further arguments of ``esper.attach``.
    """

    num_epochs: int = 10
    tamiyo_url: str | None = None
    max_steps: int | None = None
    optimizer: str | OptimizerFactory = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    schedule: str | ScheduleFactory = "cosine"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    loss: str | LossFunction = "cross_entropy"
    metrics: tuple[str, ...] | Mapping[str, Metric] = ()
    target: str = "labels"
    held_out_ratio: float = 0.1
    validation: Validation = field(default_factory=Validation)
    stopping: Stopping | None = None
    precision: str = "float32"
    accumulate: int = 1
    clipping: Clipping = field(default_factory=Clipping)
    averaging: Averaging | None = None
    device: str = "auto"
    seed: int = 0
    ddp: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = False
    every: int | None = None
    budget: str | Budget = "+30%"
    controller: str | Decides = "plateau"
    control: str | None = None
    loggers: tuple[str | Logger, ...] = ()
    log_every: int = 50
    checkpoints: Checkpoints | None = field(default_factory=Checkpoints)
    resume: str | Path | None = None
    progress: bool = True
    fast_dev_run: bool = False
    root: str = "./esper-runs"
    attach: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> dict[str, Metric]:
        """The metrics by name."""
        if isinstance(self.metrics, Mapping):
            return dict(self.metrics)
        return {name: chosen("metric", name, METRICS) for name in self.metrics}


def check_config(config: TrainerConfig) -> None:
    """Refuse what cannot be used, before anything is started.

    Raises:
        ConfigError: If something cannot; it says what, why, and what to do.
    """
    check_name_or_function("optimizer", config.optimizer, OPTIMIZERS)
    check_name_or_function("schedule", config.schedule, SCHEDULES)
    check_name_or_function("loss", config.loss, LOSSES)
    chosen("precision", config.precision, PRECISIONS)
    if config.control is not None:
        chosen("control", config.control, {TWIN: TWIN})
    check_loggers(config.loggers)
    if not 0 < config.held_out_ratio < 1:
        raise ConfigError(
            f"held_out_ratio={config.held_out_ratio}", why="a share lies between 0 and 1", code="ESP-2160"
        )
    if config.tamiyo_url is not None:
        raise ConfigError(
            f"tamiyo_url={config.tamiyo_url!r}",
            why="a controller over HTTP is not there yet",
            todo="leave it out for the controller in this process, or give controller= an object with decide(packet)",
            code="ESP-2710",
        )
    _check_numbers(config)
    known = ("loss", *config.measured)
    monitor = config.validation.monitor
    check(monitor in known, f"monitor={monitor!r}", why=f"what is measured is {', '.join(known)}", todo="see metrics=")


def rehearsed(config: TrainerConfig, root: str) -> TrainerConfig:
    """Return the settings of a run that tries everything once, below ``root``."""
    return replace(config, root=root, resume=None, every=2, log_every=1, loggers=tuple(_named(config.loggers)))


def _named(loggers: tuple[str | Logger, ...]) -> list[str | Logger]:
    """Return no logger that would write outside the run's own folder."""
    return [logger for logger in loggers if logger == "tensorboard"]


def _check_numbers(config: TrainerConfig) -> None:
    for name in ("num_epochs", "accumulate", "log_every"):
        value = getattr(config, name)
        check(isinstance(value, int) and value >= 1, f"{name}={value!r}", why="it counts", todo="give 1 or more")
    steps = config.max_steps
    check(steps is None or steps >= 1, f"max_steps={steps!r}", why="it counts steps", todo="give 1 or more")
    check(config.learning_rate > 0, f"learning_rate={config.learning_rate!r}", why="a rate is positive")
