"""How a model does on a part of the data."""

import torch
from torch import Tensor, nn

from benchmarks.growth.tasks import Part, Task
from esper.kasmina.quiet import quiet_eval

CHUNK = 512
"""Examples in one pass."""


class Scored:
    """How a model does on a part: one loss per example, and points."""

    def __init__(self, losses: Tensor, points: float) -> None:
        self.losses, self.points = losses, points
        self.loss = float(losses.mean())


def score(model: nn.Module, part: Part, task: Task) -> Scored:
    """Return how a model does on a part; it is left as it was."""
    with quiet_eval(model):
        return scored(model, part, task)


def scored(model: nn.Module, part: Part, task: Task) -> Scored:
    """Return the same, for a model that is in evaluation mode already."""
    outputs = torch.cat([model(chunk) for chunk in part.inputs.split(CHUNK)])
    return Scored(task.losses(outputs, part.labels), task.points(outputs, part.labels))
