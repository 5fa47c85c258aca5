"""The job on which growing libraries are compared: an MLP on MNIST-1D that begins narrow."""

import ast
import io
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import getsource
from itertools import count
from textwrap import dedent

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.datasets import mnist1d
from esper.datasets.splits import Examples

SIGNAL, CLASSES = 40, 10
NARROW, WIDE = 10, 50
"""Width of both hidden layers at first, and of those that are grown neuron by neuron at the end."""
GROWN_AT = (0.1, 0.2, 0.3, 0.4)
"""Shares of the run at which neurons are added, an equal part each time."""
BATCH = 128


@dataclass(frozen=True)
class Part:
    """Signals, shape ``examples 40``, and their labels."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, examples: Examples) -> "Part":
        """Return a part as tensors."""
        return cls(torch.from_numpy(examples.inputs), torch.from_numpy(examples.labels))


@dataclass(frozen=True)
class Job:
    """One run's data and length.

    Attributes:
        train: Trained on.
        validation: Chosen by.
        test: Read once.
        steps: Optimizer steps.
        rate: Peak learning rate.
        seed: Of the initial weights and of the order of the batches.
    """

    train: Part
    validation: Part
    test: Part
    steps: int
    rate: float
    seed: int

    @classmethod
    def drawn(cls, *, seed: int, steps: int, rate: float) -> "Job":
        """Return a job whose data are drawn by its seed."""
        drawn = mnist1d(seed=seed)
        return cls(Part.of(drawn.train), Part.of(drawn.validation), Part.of(drawn.test), steps, rate, seed)

    @property
    def grown_at(self) -> tuple[int, ...]:
        """Steps after which neurons are added."""
        return tuple(round(share * self.steps) for share in GROWN_AT)

    def batches(self) -> Iterator[Part]:
        """Return one batch for each step, the same for equal seeds."""
        rows = self._rows()
        for _ in range(self.steps):
            chosen = next(rows)
            yield Part(self.train.x[chosen], self.train.y[chosen])

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: half a cosine after a warm-up over a twentieth."""
        warm = max(1, self.steps // 20)
        fall = 0.5 * (1 + np.cos(np.pi * min(1.0, step / self.steps)))
        return float(self.rate * min(1.0, (step + 1) / warm) * fall)

    def _rows(self) -> Iterator[Tensor]:
        for epoch in count():
            order = torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(self.train.y)))
            yield from order.split(BATCH)[: len(order) // BATCH]  # type: ignore[no-untyped-call]


def mlp(width: int, seed: int) -> nn.Sequential:
    """Return a network of two hidden layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(SIGNAL, width), nn.SELU(), nn.Linear(width, width), nn.SELU(), nn.Linear(width, CLASSES)
    )


def num_params(model: nn.Module) -> int:
    """Return the number of its parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def points(model: nn.Module, part: Part) -> float:
    """Return the share of right answers, in percent."""
    return 100 * float((model(part.x).argmax(1) == part.y).double().mean())


def each_loss(model: nn.Module, part: Part) -> Tensor:
    """Return one loss per example."""
    return functional.cross_entropy(model(part.x), part.y, reduction="none")


SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
"""Tokens that make no line one of code."""


def lines_of(function: Callable[..., object]) -> int:
    """Return the lines of a function that hold code: no blank ones, no comments, no docstring."""
    source = dedent(getsource(function))
    (defined,) = ast.parse(source).body
    assert isinstance(defined, ast.FunctionDef)
    first = defined.body[0]
    told = range(first.lineno, (first.end_lineno or 0) + 1) if ast.get_docstring(defined) else range(0)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    spans = (range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in SILENT)
    return len({line for span in spans for line in span} - set(told))
