"""What is trained: data, hosts, length and budget of each task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.growth.hosts import perceptron, plain_perceptron, residual_cnn, transformer, uneven_cnn
from benchmarks.growth.texts import SYMBOLS, TEXTS, parted
from esper.datasets import characters, digits, friedman, mnist1d, windows
from esper.datasets.characters import Tokens
from esper.ir import Layout
from esper.kasmina import Slot, wrap

CONTEXT = 64
"""Characters that the transformer sees."""
ON_A_WIDE_PATH = 0
"""In place of a width: what growth begins with where the size is not known, in a task that has such a host."""


@dataclass(frozen=True)
class Part:
    """One part of the data.

    Attributes:
        inputs: One row per example.
        labels: Classes, next characters (one per position) or targets.
    """

    inputs: Tensor
    labels: Tensor

    def first(self, count: int) -> "Part":
        """Return some examples, evenly spread over the part."""
        rows = torch.linspace(0, len(self.inputs) - 1, min(count, len(self.inputs))).round().long()
        return Part(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class Data:
    """Three parts without a common example.

    Attributes:
        train: What is learned from.
        validation: What choices are made by.
        test: Read once, at the end.
        old: The test part of the data as they were before a change, or None.
    """

    train: Part
    validation: Part
    test: Part
    old: Part | None = None


Losses = Callable[[Tensor, Tensor], Tensor]
"""From outputs and labels to one loss per example."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: As users type it.
        load: Makes the data of a seed, given a folder of texts or None.
        host: Makes a host of a width.
        widths: Of the static controls; the first is the small host that grows.
        begins: Makes what growth begins with where the size is not known: a path as wide as the widest control's, which no graft
            can widen, with little on it. Where it is None, that is the small host.
        begins_budget: How far that may grow: about to the parameters of the widest control.
        slots: Names of the places where it may grow.
        layout: Of what flows there, where the layers do not tell.
        blueprint: What a hand grafts there.
        budget: How far the small host may grow.
        batch_size: Examples in one step.
        steps: Of a full run.
        judged_on: Validation examples on which growth is judged at boundaries.
        losses: What is trained for.
        points: From outputs and labels to quality in points: percent right, or percent of the variance that is explained.
    """

    name: str
    load: Callable[[int, Path | None], Data]
    host: Callable[[int], nn.Module]
    widths: tuple[int, ...]
    slots: tuple[str, ...]
    layout: Layout | None
    blueprint: str
    budget: str
    batch_size: int
    steps: int
    judged_on: int
    losses: Losses
    points: Callable[[Tensor, Tensor], float]
    begins: Callable[[], nn.Module] | None = None
    begins_budget: str = ""

    @property
    def begins_with(self) -> int:
        """Width of what growth begins with where the size is not known."""
        return self.widths[0] if self.begins is None else ON_A_WIDE_PATH

    def budget_of(self, width: int) -> str:
        """Return how far a host of a width may grow."""
        return self.begins_budget if width == ON_A_WIDE_PATH else self.budget

    def wrapped(self, model: nn.Module, data: Data) -> None:
        """Give a host its slots."""
        wrap(model, slots=[Slot(name, layout=self.layout) for name in self.slots], example=data.train.inputs[:2])

    def small(self, seed: int, *, width: int | None = None) -> nn.Module:
        """Return a host with the initial weights of a seed; global generators stay as they were."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.begins is not None and width == ON_A_WIDE_PATH:
                return self.begins()
            return self.host(self.widths[0] if width is None else width)


def task_named(name: str) -> Task:
    """Return a task by name."""
    return TASKS[name]


# -- losses and points ---------------------------------------------------------------------------------------------------


def class_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return one cross-entropy per example, the mean over positions where there are several, in nats."""
    if outputs.ndim == 2:
        return F.cross_entropy(outputs, labels, reduction="none")
    return F.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none").mean(dim=1)


def percent_right(outputs: Tensor, labels: Tensor) -> float:
    """Return the share of right answers in percent."""
    return 100 * float((outputs.argmax(dim=-1) == labels).double().mean())


def squared_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return one squared error per example."""
    return (outputs - labels).square()


def percent_explained(outputs: Tensor, labels: Tensor) -> float:
    """Return the coefficient of determination in percent."""
    return 100 * (1 - float((outputs - labels).square().mean() / labels.var(correction=0)))


# -- data ----------------------------------------------------------------------------------------------------------------


def _mnist1d(seed: int, _: Path | None) -> Data:
    splits = mnist1d(seed=seed, num_train=4000, num_validation=1000, num_test=4000)
    return Data(*(_part(p.inputs[:, None], p.labels) for p in (splits.train, splits.validation, splits.test)))


def _flat_mnist1d(seed: int, folder: Path | None) -> Data:
    data = _mnist1d(seed, folder)
    return Data(*(Part(part.inputs.flatten(1), part.labels) for part in (data.train, data.validation, data.test)))


def _digits(seed: int, _: Path | None) -> Data:
    splits = digits(seed=seed, num_train=1000, num_validation=297)
    return Data(*(_part(p.inputs, p.labels) for p in (splits.train, splits.validation, splits.test)))


def _characters(_: int, folder: Path | None) -> Data:
    text = characters(None if folder is None else folder / "tinyshakespeare.txt")
    return _passages(text.train, text.validation, text.test)


def _text(name: str) -> Callable[[int, Path | None], Data]:
    return lambda _, __: _passages(*parted(TEXTS[name]()))


def _passages(train: Tokens, *held_out: Tokens) -> Data:
    parts = (windows(tokens, length=CONTEXT, stride=CONTEXT) for tokens in held_out)
    return Data(_part(*windows(train, length=CONTEXT, stride=16)), *(_part(*part) for part in parts))


def _friedman(seed: int, _: Path | None) -> Data:
    inputs, targets = friedman(seed=seed, count=13_000, noise=0.3)
    parts = (slice(0, 8000), slice(8000, 9000), slice(9000, None))
    return Data(*(_part(inputs[rows], targets[rows]) for rows in parts))


def _part(inputs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Part:
    return Part(torch.from_numpy(inputs), torch.from_numpy(labels))


CNN_SLOTS = ("stage1.0", "stage1.1", "stage2.0", "stage2.1")

TASKS = {
    task.name: task
    for task in (
        Task(
            name="mnist1d",
            load=_mnist1d,
            host=partial(residual_cnn, rank=1, classes=10),
            widths=(8, 12, 16, 24, 32),
            slots=CNN_SLOTS,
            layout=None,
            blueprint="gated_conv",
            budget="x8",
            batch_size=100,
            steps=2400,
            judged_on=1000,
            losses=class_losses,
            points=percent_right,
            begins=partial(residual_cnn, 32, rank=1, classes=10, hidden=4),
            begins_budget="x4",
        ),
        Task(
            name="digits",
            load=_digits,
            host=partial(residual_cnn, rank=2, classes=10),
            widths=(3, 4, 6, 8, 12),
            slots=CNN_SLOTS,
            layout=None,
            blueprint="gated_conv",
            budget="x8",
            batch_size=64,
            steps=800,
            judged_on=297,
            losses=class_losses,
            points=percent_right,
            begins=partial(residual_cnn, 12, rank=2, classes=10, hidden=3),
            begins_budget="x3",
        ),
        Task(
            name="characters",
            load=_characters,
            host=partial(transformer, symbols=SYMBOLS, length=CONTEXT, appended=2),
            widths=(32, 48, 64, 80, 96),
            slots=("place1", "place2"),
            layout=Layout.TOKENS,
            blueprint="transformer_block",
            budget="x4",
            batch_size=32,
            steps=2000,
            judged_on=128,
            losses=class_losses,
            points=percent_right,
            begins=partial(transformer, 96, symbols=SYMBOLS, length=CONTEXT, appended=2, blocks=1),
            begins_budget="x2",
        ),
        Task(
            name="friedman",
            load=_friedman,
            host=partial(perceptron, inputs=10, trunk=16),
            widths=(2, 4, 8, 16, 32),
            slots=("block1", "block2"),
            layout=None,
            blueprint="gated_mlp",
            budget="x12",
            batch_size=100,
            steps=500,
            judged_on=250,
            losses=squared_errors,
            points=percent_explained,
        ),
    )
}
"""The tasks by name."""
TASKS |= {
    name: replace(
        TASKS["characters"], name=name, load=_text(name), widths=(64, 80, 96, 112, 128), begins=None, steps=1000
    )
    for name in TEXTS
}
TASKS["narrow"] = replace(
    TASKS["mnist1d"],
    name="narrow",
    load=_flat_mnist1d,
    host=partial(plain_perceptron, inputs=40, classes=10),
    widths=(10, 20, 30, 40, 50),
    slots=("hidden1", "hidden2"),
    blueprint="wider_mlp",
    begins=None,
)
TASKS["uneven"] = replace(
    TASKS["mnist1d"],
    name="uneven",
    host=partial(uneven_cnn, classes=10),
    slots=tuple(f"stage{stage}.{block}" for stage in (1, 2, 3) for block in range(4)),
    widths=(4, 6, 8, 12, 16),
    begins=None,
    steps=1200,
)
