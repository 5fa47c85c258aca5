"""Training one run from its first step to its last."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.growth.adapters import Adapters, adapters_of
from benchmarks.growth.changes import data_of
from benchmarks.growth.controllers import controller_of
from benchmarks.growth.plants import doctor, freeze
from benchmarks.growth.runs import Outcome, Run, Verdict
from benchmarks.growth.scoring import score, scored
from benchmarks.growth.tasks import Data, Task, task_named
from benchmarks.support.report import commit
from esper import assembly
from esper.demos.flops import FlopMeter, forward_flops
from esper.demos.training import CLIP_NORM, batches, clip, graft_from_the_start, num_params, peak_share, places_of
from esper.kasmina.quiet import quiet_eval
from esper.services.tolaria.events import GrowthEvent
from esper.services.tolaria.growth import Growth

BOUNDARIES = 20
"""Times in a run at which a controller decides, and points of a curve."""
PLANTED_AT = 0.25
"""Share of a run after which a graft joins whose verdict is studied."""
JUDGINGS = 2 * BOUNDARIES
"""Passes over the judged examples that are set aside: one at each boundary, and those of verdicts and births."""
CONTINUED = 1_000_000
"""Added to the seed of the batches of a run that continues another, so that it does not see the same ones again."""


class Course:
    """One model on its way through its batches.

    Args:
        run: What is trained.
        folder: Where kept ends lie, growing runs write, and texts are looked for.
        texts: Folder of texts, or None.
    """

    def __init__(self, run: Run, folder: Path, texts: Path | None) -> None:
        self.run, self.folder = run, folder
        self.task: Task = task_named(run.task)
        self.data: Data = data_of(run, texts)
        self.judged = self.data.validation.first(self.task.judged_on)
        self.model = self.task.small(run.seed, width=run.width)
        if run.begin:
            self._begin_with(load_file(folder / f"{run.begin}.weights"))
        self.grows = bool(run.controller or run.planted or run.plant)
        if self.grows or run.places:
            self.task.wrapped(self.model, self.data)
        graft_from_the_start(self.model, run.places)
        self.steps = run.steps
        self.birth: float | None = None
        self.adapters = self._adapted() if run.adapters else None
        self.model.train()
        self.curve: list[tuple[int, float]] = []
        self.events: list[str] = []
        self.verdicts: list[Verdict] = []
        self.held: list[tuple[int, float]] = []
        self.step = 0
        self.overhead = 0
        self.meter = self._meter(self.model)
        self.steps = self.steps or self._steps_for(run.flops)
        self.optimizer = AdamW(self.model.parameters(), lr=run.rate, weight_decay=0.0, fused=True)
        if run.begin and not run.adapters:
            self._take_moments(load_file(folder / f"{run.begin}.moments"))
        self.schedule = LambdaLR(self.optimizer, lambda step: peak_share(step, self.steps))

    @property
    def every(self) -> int:
        """Steps from one boundary to the next."""
        return max(1, self.steps // BOUNDARIES)

    @property
    def params(self) -> int:
        """Parameters in use."""
        return num_params(self.model) if self.adapters is None else self.adapters.params

    def train(self) -> None:
        """Take all steps."""
        if not self.grows:
            for step, _ in self._steps():
                if step % self.every == 0:
                    self._note(score(self.model, self.judged, self.task).loss)
            return
        with self._attached() as growth:
            if not self.run.plant:
                self._graft(growth)
            for step, loss in self._steps():
                events = growth.step(loss)
                self._tell(events)
                if self.run.plant and step == round(PLANTED_AT * BOUNDARIES) * self.every:
                    self._graft(growth)
                if step % self.every == 0:
                    self._note(score(self.model, self.judged, self.task).loss)
            if self.run.shrink:
                self._tell(growth.shrink())
            self.overhead = sum(growth.flops.values())

    def _graft(self, growth: Growth) -> None:
        """Graft by hand what the run plants."""
        self._tell([growth.graft(place.slot, place.blueprint) for place in self.run.planted])
        if self.run.frozen:
            freeze(self.model)
            self.meter.changed()
        if self.run.plant:
            doctor(self.model, self.run.plant)

    def _tell(self, events: Sequence[GrowthEvent]) -> None:
        self.events += [str(event) for event in events]
        self.verdicts += [
            Verdict(event.step, event.kind, event.gain, event.gain_error) for event in events if event.kept is not None
        ]
        if events:
            self.meter.changed()

    def keep(self) -> None:
        """Keep weights and moments for runs that continue."""
        save_file(
            {k: v.contiguous() for k, v in self.model.state_dict().items()}, self.folder / f"{self.run.key}.weights"
        )
        state = self.optimizer.state
        moments = {
            f"{name}|{kind}": value.reshape(-1) if value.ndim == 0 else value.contiguous()
            for name, parameter in self.model.named_parameters()
            for kind, value in state[parameter].items()
        }
        save_file(moments, self.folder / f"{self.run.key}.moments")

    def _steps(self) -> Iterator[tuple[int, Tensor]]:
        seed = self.run.seed + (CONTINUED if self.run.begin else 0)
        rows = batches(len(self.data.train.inputs), self.task.batch_size, seed=seed)
        for step in range(1, self.steps + 1):
            chosen = next(rows)
            loss = self._loss(self.data.train.inputs[chosen], self.data.train.labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            clip(self.optimizer, CLIP_NORM)
            self.optimizer.step()
            self.schedule.step()
            self.meter.step()
            if self.adapters is not None and self.adapters.settle(step):
                self.meter.changed()
            self.optimizer.zero_grad()
            self.step = step
            yield step, loss

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if self.adapters is not None:
            return self.adapters.loss(inputs, labels)
        return self.task.losses(self.model(inputs), labels).mean()

    def _adapted(self) -> Adapters:
        """Put adapters on the host, and note what that changes at once."""
        seen = self.judged.inputs
        with quiet_eval(self.model):
            before = self.model(seen)
        adapters = adapters_of(self.model, self.run, self.data, self.task.losses)
        self.model = adapters.model
        with quiet_eval(self.model):
            self.birth = float((self.model(seen) - before).abs().max())
        return adapters

    def _attached(self) -> Growth:
        return assembly.attach(
            self.model,
            self.optimizer,
            validate=self._held_out,
            every=self.every,
            steps=self.steps,
            scheduler=self.schedule,
            budget=self.task.budget_of(self.run.width),
            controller=controller_of(self.run, self.task.blueprint),
            late="wait",
            root=self.folder / "growing",
        )

    def _held_out(self, model: nn.Module) -> Tensor:
        losses = scored(model, self.judged, self.task).losses
        if not self.held or self.held[-1][0] != self.step:
            self.held.append((self.step, float(losses.mean())))
        return losses

    def _meter(self, model: nn.Module) -> FlopMeter:
        first = slice(0, self.task.batch_size)
        train = self.data.train
        return FlopMeter(model, train.inputs[first], train.labels[first], self.judged.inputs, self.task.losses)

    def _steps_for(self, flops: int) -> int:
        """Return how many steps of the network, with what a hand will graft, and their judging, FLOPs are enough for."""
        if not self.run.planted:
            return max(1, flops // self.meter.per_step)
        grown = self.task.small(self.run.seed, width=self.run.width)
        self.task.wrapped(grown, self.data)
        graft_from_the_start(grown, self.run.planted)
        if self.run.frozen:
            freeze(grown)
        judging = JUDGINGS * forward_flops(grown, self.judged.inputs)
        return max(1, (flops - judging) // self._meter(grown).per_step)

    def _note(self, loss: float) -> None:
        self.curve.append((self.meter.spent, loss))

    def _begin_with(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def _take_moments(self, moments: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            held = {key.partition("|")[2]: value for key, value in moments.items() if key.partition("|")[0] == name}
            if held:
                self.optimizer.state[parameter] = {
                    kind: value.reshape(()) if kind == "step" else value for kind, value in held.items()
                }


def perform(run: Run, folder: Path, texts: Path | None) -> Outcome:
    """Train a run.

    Args:
        run: Which, and how.
        folder: Where kept ends lie and growing runs write.
        texts: Folder of texts, or None.
    """
    torch.set_num_threads(1)
    start = perf_counter()
    course = Course(run, folder, texts)
    course.train()
    if run.keep:
        course.keep()
    validation = score(course.model, course.data.validation, course.task)
    data, read = course.data, run.read_test
    test = score(course.model, data.test, course.task) if read else None
    old = score(course.model, data.old, course.task) if read and data.old is not None else None
    return Outcome(
        run=run, commit=commit(), steps=course.steps, params=course.params,
        flops=course.meter.spent + course.overhead, overhead=course.overhead,
        validation=validation.points, validation_loss=validation.loss,
        test=None if test is None else test.points, test_loss=None if test is None else test.loss,
        places=places_of(course.model), curve=tuple(course.curve), events=tuple(course.events),
        seconds=perf_counter() - start, old_test=None if old is None else old.points,
        birth=course.birth, verdicts=tuple(course.verdicts), held=tuple(course.held),
    )  # fmt: skip
