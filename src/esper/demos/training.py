"""Training one arm on one seed."""

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from esper import assembly
from esper.demos.arms import Arm
from esper.demos.controllers import controller_of
from esper.demos.flops import FlopMeter
from esper.demos.hosts import make_host
from esper.demos.messages import Grown, Job, Message, Place, Progress, Score, Started, Trained
from esper.demos.scoring import Part, Validation, mean_loss, score
from esper.demos.tasks import Task, task_named
from esper.ir import REGISTRY
from esper.kasmina import Slot, join, placement_of, topology, wrap
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tolaria.events import GrowthEvent
from esper.services.tolaria.growth import Growth

WARMUP_SHARE = 0.3
"""As torch's OneCycleLR has it; newborns of the first boundaries warm up with the host."""
CLIP_NORM = 1.0
"""Without it the larger networks diverge at the rates that the small ones need; every arm has it."""
WEIGHT_DECAY = 0.0
REPORTS = 50
"""Progress reports in one training."""

Tell: TypeAlias = Callable[[Message], None]


class Course:
    """One model on its way through the batches of a seed.

    Args:
        job: Arm and seed.
        task: What is trained.
        tell: Where messages go.

    Attributes:
        steps: Planned optimizer steps.
        meter: What was spent.
    """

    def __init__(self, job: Job, task: Task, tell: Tell) -> None:
        splits = task.load(job.seed)
        self.job, self.task, self.tell = job, task, tell
        self.train, self.validation, self.test = (
            Part.of(part) for part in (splits.train, splits.validation, splits.test)
        )
        self.model = make_host(task.name, seed=job.seed)
        if job.arm.grows or job.places:
            slots = [Slot(name, layout=task.layout) for name in task.slots]
            wrap(self.model, slots=slots, example=self.train.inputs[:2])
        graft_from_the_start(self.model, job.places)
        self.model.train()
        first = slice(0, task.batch_size)
        self.meter = FlopMeter(self.model, self.train.inputs[first], self.train.labels[first], self.validation.inputs)
        self.steps = task.steps if job.flops is None else max(1, job.flops // self.meter.per_step)
        self.optimizer = AdamW(self.model.parameters(), lr=job.rate, weight_decay=WEIGHT_DECAY, fused=True)
        self.schedule = LambdaLR(self.optimizer, lambda step: peak_share(step, self.steps))

    def take_steps(self) -> Iterator[tuple[int, Tensor]]:
        """Take the planned steps, and hand out each one's number, from 1, and its loss."""
        rows = batches(len(self.train.labels), self.task.batch_size, seed=self.job.seed)
        stride = max(1, self.steps // REPORTS)
        for step in range(1, self.steps + 1):
            yield step, self._step(next(rows))
            if step % stride == 0:
                self.tell(Progress(self.job.arm, self.job.seed, step))

    def finish(self, *, extra_flops: int = 0, waits: int = 0, late_waits: int = 0) -> Trained:
        """Score the trained model; the test part is read here, once, and nowhere else."""
        test = score(self.model, self.test) if self.job.read_test else None
        return Trained(
            arm=self.job.arm, seed=self.job.seed, steps=self.steps, params=num_params(self.model),
            train_flops=self.meter.spent + extra_flops, validation=score(self.model, self.validation), test=test,
            places=places_of(self.model), waits=waits, late_waits=late_waits,
        )  # fmt: skip

    def _step(self, rows: Tensor) -> Tensor:
        loss = mean_loss(self.model(self.train.inputs[rows]), self.train.labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        clip(self.optimizer, CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.meter.step()
        return loss


def train(job: Job, tell: Tell) -> Trained:
    """Train one arm on one seed.

    Args:
        job: Which, and how.
        tell: Is told how far the training is, and what happens to the model.

    Returns:
        What came of it.

    Raises:
        EsperError: If the job cannot be done.
    """
    task = task_named(job.task)
    course = Course(job, task.quick() if job.quick else task, tell)
    tell(Started(job.arm, job.seed, course.steps, num_params(course.model)))
    if job.arm.grows:
        return _grow(course)
    for _ in course.take_steps():
        pass
    return course.finish()


def _grow(course: Course) -> Trained:
    validate = Validation(course.validation)
    with assembly.attach(
        course.model,
        course.optimizer,
        validate=validate,
        every=course.task.every,
        steps=course.steps,
        scheduler=course.schedule,
        budget=course.task.budget,
        controller=controller_of(course.job.arm, seed=course.job.seed),
        late="wait",
        root=course.job.root,
    ) as growth:
        for _, loss in course.take_steps():
            events = growth.step(loss)
            for event in events:
                course.tell(_grown(course.job, event, validate.score))
            if events:
                course.meter.changed()
        return _finished(course, growth)


def _finished(course: Course, growth: Growth) -> Trained:
    return course.finish(extra_flops=sum(growth.flops.values()), waits=growth.waits, late_waits=growth.late_waits)


def _grown(job: Job, event: GrowthEvent, validation: Score) -> Grown:
    return Grown(
        arm=job.arm, seed=job.seed, step=event.step, action=event.kind.value, slot=event.slot,
        blueprint=event.blueprint, why=event.why, gain=event.gain, kept=event.kept,
        added_params=event.added_params, validation=validation,
    )  # fmt: skip


def peak_share(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: a linear warm-up, then half a cosine down to zero.

    Args:
        step: From 0.
        steps: Of this arm; every arm's schedule spans its own.

    References:
        Smith, Topin 2018, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
    """
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def clip(optimizer: Optimizer, largest: float) -> None:
    """Scale gradients so that their common norm is at most ``largest``.

    It computes what ``nn.utils.clip_grad_norm_`` does in half of its time, which matters where a step takes half a millisecond.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.cat([gradient.reshape(-1) for gradient in gradients]).norm()
    share = torch.clamp(largest / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(share)


def batches(num_examples: int, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """Hand out rows without end, each pass in another order; equal seeds give equal batches, whatever is trained."""
    generator = np.random.default_rng([seed, num_examples, batch_size])
    while True:
        order = torch.from_numpy(generator.permutation(num_examples))
        for start in range(0, num_examples - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def graft_from_the_start(model: nn.Module, places: tuple[Place, ...]) -> None:
    """Give a model the blocks that another one grew, with the weights that the forge gave them at birth.

    A static network of the final size thus has the very blocks of the grown one, zero-initialised last layers included.
    """
    compiler = KernelCompiler()
    for place in places:
        ir = REGISTRY.build(place.blueprint, placement_of(model).place(place.slot).site())
        kernel = compiler.compile(ir)
        join(model, place.slot, place.seed_idx, kernel.kernel_binary, kernel_id=kernel.artifact_id, blueprint=ir.name)


def places_of(model: nn.Module) -> tuple[Place, ...]:
    """Return what is grafted to a model."""
    if not hasattr(model, "esper"):
        return ()
    return tuple(Place(entry.slot, entry.seed_idx, entry.blueprint) for entry in topology(model))


def num_params(model: nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


__all__ = ["Arm", "train"]
