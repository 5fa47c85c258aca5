"""One training from its parts to its report."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from esper.kasmina import MorphableModel, wrap
from esper.kasmina.quiet import preserved_rng
from esper.services.tolaria.config import GrowthConfig
from esper.services.tolaria.distributed.team import Team, told_text
from esper.services.tolaria.snapshot import Stateful
from esper.services.tolaria.trainer.batches import inputs_of, moved
from esper.services.tolaria.trainer.config import TrainerConfig
from esper.services.tolaria.trainer.devices import device_for
from esper.services.tolaria.trainer.growing import attached, every_of
from esper.services.tolaria.trainer.keeping import Checkpoints, Keeper, resume
from esper.services.tolaria.trainer.loaders import Feed
from esper.services.tolaria.trainer.loggers.base import Loggers
from esper.services.tolaria.trainer.loggers.lines import JsonLines
from esper.services.tolaria.trainer.loggers.named import open_loggers
from esper.services.tolaria.trainer.loop import Halt, Loop, Work
from esper.services.tolaria.trainer.objective import Objective
from esper.services.tolaria.trainer.optimizers import make_optimizer
from esper.services.tolaria.trainer.precision import PRECISIONS, Precision
from esper.services.tolaria.trainer.processes import distributed
from esper.services.tolaria.trainer.progress import Progress, progress_for
from esper.services.tolaria.trainer.rehearsal import VALIDATION_BATCHES, rehearsal_steps, rehearse
from esper.services.tolaria.trainer.report import TrainingReport
from esper.services.tolaria.trainer.schedules import make_schedule
from esper.services.tolaria.trainer.splitting import check_equal, feeds
from esper.services.tolaria.trainer.stepping import Stepper
from esper.services.tolaria.trainer.validation import Validator
from esper.services.tolaria.twin import Twin

if TYPE_CHECKING:
    from esper.services.tolaria.growth import Growth


SCALER_AT = 1
"""Place of the gradient scaler in ``Parts.state``, where there is one."""


@dataclass(frozen=True)
class Parts:
    """What a training is made of before it grows.

    Attributes:
        stepper: Model, optimizer, schedule.
        feed: Training batches.
        validator: Held-out batches.
        device: Where the model is.
        steps: Planned optimizer steps.
        average: Of the weights, or None.
        team: The processes that train together.
    """

    stepper: Stepper
    feed: Feed
    validator: Validator
    device: torch.device
    steps: int
    average: AveragedModel | None = None
    team: Team = field(default_factory=Team)

    @property
    def net(self) -> nn.Module:
        """What is called in training."""
        return self.stepper.model if self.stepper.net is None else self.stepper.net

    @property
    def state(self) -> tuple[Stateful, ...]:
        """What is snapshotted, rolled back and resumed beside model, optimizer and schedule."""
        others: tuple[Stateful | None, ...] = (self.feed, self.stepper.precision.scaler, self.average)
        return tuple(other for other in others if other is not None)


def prepare(
    config: TrainerConfig, model: nn.Module, dataloader: Any, held_out: Iterable[Any] | None, team: Team
) -> Parts:
    """Make the parts of a training; the model is wrapped, moved and distributed, nothing is started.

    Raises:
        ConfigError: If one of them cannot be made.
    """
    with team.together("preparing the training"):
        feed, aside = feeds(dataloader, held_out, ratio=config.held_out_ratio, seed=config.seed, team=team)
        device = device_for(config.device, model)
        model.to(device)
        if not isinstance(model, MorphableModel):
            wrap(model, example=_example(aside, device, config.target))
    check_equal(team, feed)
    net = distributed(team, model, config.ddp)
    steps = _planned(config, feed)
    objective = Objective(config.loss, config.measured, target=config.target)
    stepper = stepper_of(config, model, objective, device, steps)
    average = None if config.averaging is None else config.averaging.of(model)
    most = VALIDATION_BATCHES if config.fast_dev_run else None
    validator = Validator(aside, objective, stepper.precision, device, most=most, team=team)
    if net is not model:
        stepper = replace(stepper, net=net)
    return Parts(stepper, feed, validator, device, steps, average, team)


def stepper_of(
    config: TrainerConfig, model: nn.Module, objective: Objective, device: torch.device, steps: int
) -> Stepper:
    """Return what trains a model, in the state in which a run begins."""
    optimizer = make_optimizer(
        config.optimizer, model, learning_rate=config.learning_rate, options=config.optimizer_options
    )
    precision = Precision(PRECISIONS[config.precision], device)
    return Stepper(model, optimizer, schedule_of(config, optimizer, steps), objective, precision, config.clipping)


def twin_of(config: TrainerConfig, parts: Parts) -> Twin | None:
    """Return what trains beside the run after a join, where that is wanted."""
    if config.control is None:
        return None

    def make(model: nn.Module) -> Stepper:
        return stepper_of(config, model, parts.stepper.objective, parts.device, parts.steps)

    stride = GrowthConfig(every=every_of(config, parts.steps)).stride
    return Twin(parts.stepper.model, make, parts.validator.losses, stride=stride, scaler_at=SCALER_AT)


def schedule_of(config: TrainerConfig, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    """Return the schedule of an optimizer; one that waits for a plateau waits for that of the monitored metric."""
    options = dict(config.schedule_options)
    if config.schedule == "plateau":
        options = {"mode": config.validation.mode, **options}
    return make_schedule(config.schedule, optimizer, steps=steps, options=options)


def conduct(
    config: TrainerConfig, model: nn.Module, dataloader: Any, held_out: Iterable[Any] | None, halt: Halt, team: Team
) -> TrainingReport:
    """Train from the first step to the report.

    Raises:
        Halted: If ``halt`` was asked.
    """
    parts = prepare(config, model, dataloader, held_out, team)
    stepper, twin = parts.stepper, twin_of(config, parts)
    with ExitStack() as stack:
        growth = stack.enter_context(
            attached(
                config, parts.net, stepper.optimizer, stepper.schedule,
                validate=parts.validator.losses, state=parts.state, steps=parts.steps,
                control=twin,
            )
        )  # fmt: skip
        folder = Path(config.root) / growth.run_id
        loggers = _loggers(config, folder, growth.run_id, team)
        stack.callback(loggers.close)
        shown = config.progress if team.leads else False
        progress: Progress = stack.enter_context(progress_for(shown, steps=parts.steps))
        keeper = None if config.checkpoints is None else _keeper(config, config.checkpoints, growth, stack, team)
        work = Work(
            stepper, parts.feed, parts.validator, growth, parts.device, loggers, progress, parts.steps, parts.average, keeper,
            twin, team,
        )  # fmt: skip
        loop = Loop(config, work, halt)
        if keeper is not None:
            growth.before_graft(lambda: keeper.before_graft(loop))
        if config.resume is not None:
            resume(config.resume, Path(config.root), growth, loop, team)
        if config.fast_dev_run:
            rehearse(loop, work)
        loop.run()
        return _report(config, parts, work, loop)


def _planned(config: TrainerConfig, feed: Feed) -> int:
    """Return the optimizer steps of the run; the last of an epoch takes the batches that are left."""
    if config.fast_dev_run:
        return rehearsal_steps(config)
    return config.max_steps or config.num_epochs * -(-len(feed) // config.accumulate)


def _example(held_out: Iterable[Any], device: torch.device, target: str) -> Any:
    """Return the inputs of a held-out batch, or None where the first step must tell the shapes."""
    with preserved_rng():
        for batch in held_out:
            return moved(inputs_of(batch, target=target), device)
    return None


def _loggers(config: TrainerConfig, folder: Path, run_id: str, team: Team) -> Loggers:
    """Return the loggers of a run, which the process that leads alone has."""
    with team.together("opening the loggers"):
        opened = open_loggers(config.loggers, folder=folder, run_id=run_id) if team.leads else ()
    return Loggers([JsonLines(folder / "metrics.jsonl"), *opened] if team.leads else [])


def _keeper(config: TrainerConfig, when: Checkpoints, growth: "Growth", stack: ExitStack, team: Team) -> Keeper:
    keeper = Keeper(when, Path(config.root) / growth.run_id, growth, mode=config.validation.mode, team=team)
    stack.callback(keeper.close)
    return keeper


def _report(config: TrainerConfig, parts: Parts, work: Work, loop: Loop) -> TrainingReport:
    growth = work.growth
    kept = json.loads(told_text(parts.team, lambda: json.dumps(_kept(work))))
    checkpoint = kept["checkpoint"]
    return TrainingReport(
        losses=tuple(loop.record.losses),
        events=tuple(growth.events),
        steps=growth.spent_steps,
        validations=tuple(loop.record.validations),
        best=loop.best.value,
        best_step=loop.best.step,
        ended="stopped early" if loop.stopped_early else "finished",
        run_id=growth.run_id,
        folder=None if config.fast_dev_run else Path(config.root) / growth.run_id,
        flops=dict(growth.flops),
        skipped_steps=parts.stepper.precision.skipped,
        log_failures=kept["log_failures"],
        checkpoint=None if checkpoint is None or config.fast_dev_run else Path(checkpoint),
        average=None if parts.average is None else parts.average.module,
        checkpoint_failures=kept["checkpoint_failures"],
    )


def _kept(work: Work) -> dict[str, Any]:
    """Return what the process that leads, which alone writes, has to say about what it wrote."""
    keeper = work.keeper
    return {
        "checkpoint": None if keeper is None or keeper.last is None else str(keeper.last),
        "checkpoint_failures": 0 if keeper is None else keeper.failures,
        "log_failures": dict(work.loggers.failures),
    }
