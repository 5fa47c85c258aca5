"""What the arms of a task are compared by, and how its figures are written."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Scored(Protocol):
    """How a model does on a part of the data.

    Attributes:
        accuracy: Share of right answers, from 0 to 1.
        loss: Mean loss, in nats.
    """

    @property
    def accuracy(self) -> float: ...  # noqa: D102

    @property
    def loss(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Measure:
    """A figure that says how good a model is.

    Attributes:
        name: As people read it.
        of: From a score to the figure.
        sign: 1 where more is better, -1 where less is.
        unit: Behind a figure.
        difference: Unit of a difference, in words.
        scale: From the figure to what is written.
        digits: Behind the point; a difference has one more.
    """

    name: str
    of: Callable[[Scored], float]
    sign: int
    unit: str
    difference: str
    scale: float
    digits: int

    def cost(self, score: Scored) -> float:
        """Return the figure so that less is better."""
        return -self.sign * self.of(score)

    def written(self, figure: float) -> str:
        """Return a figure with its unit, as wide as any other."""
        return f"{self.scale * figure:5.{self.digits}f} {self.unit}"

    def spread(self, mean: float, deviation: float) -> str:
        """Return a mean ± its standard deviation, without the unit."""
        return f"{self.scale * mean:.{self.digits}f} ± {self.scale * deviation:.{self.digits}f}"

    def paired(self, mean: float, error: float) -> str:
        """Return a mean difference ± its standard error, which is left out where there is none."""
        shown = f"{self.scale * mean:+.{self.digits + 1}f}"
        return f"{shown} ± {self.scale * error:.{self.digits + 1}f}" if math.isfinite(error) else shown


ACCURACY = Measure("accuracy", lambda score: score.accuracy, sign=1, unit="%", difference="points", scale=100, digits=1)
"""Share of right answers; of a text, of next characters that were named."""
BITS = Measure(
    "bits per character", lambda score: score.loss / math.log(2), sign=-1, unit="bits", difference="bits", scale=1, digits=2
)  # fmt: skip
"""What a character costs a code that follows the model's forecasts: the loss, in bits instead of nats."""
