"""How a model does on a part of the data: losses that training and verdicts go by, and scores for people."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.datasets import Examples
from esper.demos.messages import Score
from esper.kasmina.quiet import quiet_eval


@dataclass(frozen=True)
class Part:
    """One part of the data as tensors."""

    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(cls, examples: Examples) -> "Part":
        """Take numpy's arrays over."""
        return cls(torch.from_numpy(examples.inputs), torch.from_numpy(examples.labels))


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over examples, and over their positions where they have several, in nats.

    Args:
        outputs: Shape (examples, classes), or (examples, positions, classes).
        labels: Shape (examples,), or (examples, positions).
    """
    return F.cross_entropy(outputs.movedim(-1, 1), labels)


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the same by example, shape (examples,)."""
    each = F.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none")
    return each.reshape(len(labels), -1).mean(dim=1)


def score(model: nn.Module, part: Part) -> Score:
    """Return how a model does on a part; it is left as it was."""
    with quiet_eval(model):
        outputs = model(part.inputs)
        return _score(outputs, part.labels, losses(outputs, part.labels))


class Validation:
    """Held-out losses for ``esper.attach``; the score of the same pass is kept for people.

    Attributes:
        score: Of the last pass.
    """

    def __init__(self, part: Part) -> None:
        self.score = Score(accuracy=math.nan, loss=math.nan)
        self._part = part

    def __call__(self, model: nn.Module) -> Tensor:
        """Return one loss per held-out example."""
        outputs = model(self._part.inputs)
        found = losses(outputs, self._part.labels)
        self.score = _score(outputs, self._part.labels, found)
        return found


def _score(outputs: Tensor, labels: Tensor, found: Tensor) -> Score:
    right = outputs.argmax(dim=-1) == labels
    return Score(accuracy=float(right.double().mean()), loss=float(found.mean()))
