"""The loop: step, validate, stop; where it stands can be saved after any step."""

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.observation import TrainingLoss
from esper.services.tolaria.trainer.batches import moved
from esper.services.tolaria.trainer.config import TrainerConfig
from esper.services.tolaria.trainer.loaders import Feed
from esper.services.tolaria.trainer.loggers.base import Loggers
from esper.services.tolaria.trainer.progress import Progress, line_of
from esper.services.tolaria.trainer.report import Measured
from esper.services.tolaria.trainer.schedules import by_step
from esper.services.tolaria.trainer.stepping import Stepper
from esper.services.tolaria.trainer.stopping import Best
from esper.services.tolaria.trainer.validation import Validator

if TYPE_CHECKING:
    from esper.services.tolaria.growth import Growth
    from esper.services.tolaria.trainer.keeping import Keeper
    from esper.services.tolaria.twin import Twin


class Halted(Exception):
    """The run was asked to stop, and did after a whole step.

    Attributes:
        number: The signal that asked, or that of Ctrl-C where the caller did.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Halt:
    """Asked by whoever wants the run to stop after its present step.

    Attributes:
        number: The signal that asked last; 0 where nobody did.
    """

    def __init__(self) -> None:
        self.number = 0

    def ask(self, number: int = signal.SIGINT) -> None:
        """Ask; from any thread, or from within a signal handler."""
        self.number = number

    def agreed(self, team: Team) -> int:
        """Return the signal that any process was asked with, the same in all of them; 0 where none was."""
        return int(max(row[0] for row in team.gather([float(self.number)])))


@dataclass(frozen=True)
class Work:
    """What a loop works with.

    Attributes:
        stepper: Takes optimizer steps.
        feed: Training batches.
        validator: Held-out metrics.
        growth: The attached run.
        device: Where the model is.
        loggers: Take metrics and events.
        progress: Shows where the run stands.
        steps: Planned optimizer steps.
        average: Of the weights, or None.
        keeper: Writes checkpoints, or None.
        twin: Trains beside the run after a join, or None.
        team: The processes that train together.
    """

    stepper: Stepper
    feed: Feed
    validator: Validator
    growth: "Growth"
    device: torch.device
    loggers: Loggers
    progress: Progress
    steps: int
    average: AveragedModel | None = None
    keeper: "Keeper | None" = None
    twin: "Twin | None" = None
    team: Team = field(default_factory=Team)


@dataclass
class Record:
    """What a loop remembers; appended only, and no rollback takes it back.

    Attributes:
        losses: Mean training loss of each epoch.
        validations: Every validation.
        epoch_over: Whether the pass over the data ended with the step under way.
    """

    losses: list[float] = field(default_factory=list)
    validations: list[Measured] = field(default_factory=list)
    epoch_over: bool = False


class Loop:
    """Runs a training to its planned length, or until nothing gets better.

    Args:
        config: How.
        work: With what.
        halt: Asked by whoever wants the run to stop after its present step.

    Attributes:
        record: What came of it.
        best: The best value of the monitored metric.
    """

    def __init__(self, config: TrainerConfig, work: Work, halt: Halt) -> None:
        self.record = Record()
        stopping = config.stopping
        self.best = Best(config.validation.mode, min_delta=stopping.min_delta if stopping else 0.0)
        self._config, self._work, self._halt = config, work, halt
        self._epoch, self._recent = TrainingLoss(), TrainingLoss()

    @property
    def stopped_early(self) -> bool:
        """Whether the metric has not got better for as long as it is waited for."""
        stopping = self._config.stopping
        return stopping is not None and self.best.waited >= stopping.patience

    def run(self) -> None:
        """Train to the end.

        Raises:
            Halted: If it was asked to stop.
        """
        growth, model = self._work.growth, self._work.stepper.model
        model.train()
        if self.record.epoch_over:  # resumed from the state before a graft, in the middle of a step
            self.settle()
        while growth.planned_step < self._work.steps and not self.stopped_early:
            if asked := self._asked():
                self._kept()
                raise Halted(asked)
            self.step()
        if self._epoch.count:
            self.record.losses.append(self._taken(self._epoch))
        self._kept()

    def step(self) -> None:
        """Take one optimizer step, and all that is due after it."""
        work = self._work
        batches, weights = self._batches()
        shown = () if work.twin is None else work.twin.shown(batches)
        self._learn(work.stepper.step(batches, weights))
        self._average()
        if work.twin is not None:
            work.twin.step(shown, work.growth.planned_step + 1)
        self.record.epoch_over = work.feed.position >= len(work.feed)
        for event in work.growth.step(self._loss):
            work.loggers.event(event)
            work.progress.say(str(event))
        self.settle()

    def settle(self) -> None:
        """Do what is due after a step: log, validate, save."""
        work, config = self._work, self._config
        step = work.growth.planned_step
        work.progress.step(step, work.feed.epoch)
        if step % config.log_every == 0:
            work.loggers.log(self._training_metrics(), step)
        over, self.record.epoch_over = self.record.epoch_over, False
        if over:
            self.record.losses.append(self._taken(self._epoch))
        better = self.validate() if self._validates(step, over=over) else None
        if work.keeper is not None:
            work.keeper.whole(self, over=over, better=better)

    @property
    def monitored(self) -> float:
        """The monitored metric of the last validation."""
        return self.record.validations[-1].values[self._config.validation.monitor]

    def say(self, text: str) -> None:
        """Show one line."""
        self._work.progress.say(text)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed loop needs beside the state of growth."""
        return {
            "losses": list(self.record.losses),
            "validations": [[found.step, dict(found.values)] for found in self.record.validations],
            "epoch_over": self.record.epoch_over,
            "best": self.best.state_dict(),
            "skipped": self._work.stepper.precision.skipped,
            **self._sums(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        validations = [Measured(step, values) for step, values in state["validations"]]
        self.record = Record(list(state["losses"]), validations, state["epoch_over"])
        self.best.load_state_dict(state["best"])
        self._work.stepper.precision.skipped = state["skipped"]
        ranks: list[list[Any]] | None = state.get("sums_of_ranks")
        (total, count), (recent, recent_count) = (
            state["sums"] if ranks is None else _paired(ranks[self._work.team.rank])
        )
        self._epoch, self._recent = TrainingLoss(total, count), TrainingLoss(recent, recent_count)

    def _sums(self) -> dict[str, Any]:
        """Return the sums of losses that are under way: those of every process, which each has for itself."""
        sums = [(mean.total, mean.count) for mean in (self._epoch, self._recent)]
        if self._work.team.size == 1:
            return {"sums": [list(each) for each in sums]}
        own = [number for total, count in sums for number in (float("nan") if total is None else float(total), count)]
        return {"sums_of_ranks": self._work.team.gather(own)}

    def _average(self) -> None:
        work, when = self._work, self._config.averaging
        if work.average is not None and when is not None and (work.growth.planned_step + 1) % when.every == 0:
            work.average.update_parameters(work.stepper.model)

    def _kept(self) -> None:
        if self._work.keeper is not None:
            self._work.keeper.last_of_all(self)

    def _asked(self) -> int:
        """Return the signal that ends the run now, or 0. Where processes speak over the device they do so rarely: it waits."""
        step, team = self._work.growth.planned_step, self._work.team
        due = team.size == 1 or team.on_cpu or step % self._config.log_every == 0
        return self._halt.agreed(team) if due else 0

    def _batches(self) -> tuple[list[Any], list[float]]:
        """Return the batches of one step, and the weight of each."""
        feed = self._work.feed
        left = len(feed) - feed.position or len(feed)
        batches, weights = [], []
        for _ in range(min(self._config.accumulate, left)):
            batches.append(moved(feed.next(), self._work.device))
            weights.append(feed.weight)
        return batches, weights

    def _learn(self, loss: Tensor) -> None:
        self._loss = loss
        self._epoch.add(loss)
        self._recent.add(loss)

    def _taken(self, mean: TrainingLoss) -> float:
        found = mean.take()
        return self._work.team.mean(float("nan") if found is None else found)

    def _validates(self, step: int, *, over: bool) -> bool:
        when = self._config.validation
        if when.every_steps is not None:
            return step % when.every_steps == 0
        return over and len(self.record.losses) % when.every_epochs == 0

    def validate(self) -> bool:
        """Measure the metrics now; True where the monitored one is the best so far."""
        work, monitor = self._work, self._config.validation.monitor
        step = work.growth.planned_step
        values = work.validator.metrics(work.stepper.model if work.average is None else work.average.module)
        self.record.validations.append(Measured(step, values))
        better = self.best.take(values[monitor], step)
        schedule = work.stepper.schedule
        if schedule is not None and not by_step(schedule):
            schedule.step(values[monitor])  # type: ignore[arg-type]
            if work.twin is not None:
                work.twin.follow_metric(values[monitor])
        work.loggers.log({f"validation/{name}": value for name, value in values.items()}, step)
        work.progress.say(line_of(step, work.steps, {f"validation {name}": value for name, value in values.items()}))
        return better

    def _training_metrics(self) -> dict[str, float]:
        optimizer = self._work.stepper.optimizer
        parameters = sum(parameter.numel() for parameter in self._work.stepper.model.parameters())
        return {
            "train/loss": self._taken(self._recent),
            "train/learning_rate": float(optimizer.param_groups[0]["lr"]),
            "train/epoch": float(self._work.feed.epoch),
            "growth/params": float(parameters),
            "growth/spent_steps": float(self._work.growth.spent_steps),
        }


def _paired(row: list[float]) -> list[list[Any]]:
    """Return one process's sums and counts of losses as they were; a sum of nothing is None."""
    return [
        [torch.tensor(total, dtype=torch.float32) if count else None, int(count)]
        for total, count in zip(row[::2], row[1::2], strict=True)
    ]
