"""The learning rate of every arm, chosen beforehand on validation data and committed with the grid that it was chosen from."""

from collections.abc import Iterable
from importlib import resources

import msgspec

from esper.demos.arms import Arm
from esper.demos.measures import Measure
from esper.errors import NotFound


class Point(msgspec.Struct, frozen=True):
    """One learning rate as it was tried.

    Attributes:
        rate: Peak learning rate.
        accuracy: Mean validation accuracy over the tuning seeds.
        loss: Mean validation loss over them.
    """

    rate: float
    accuracy: float
    loss: float


class Choice(msgspec.Struct, frozen=True):
    """What was tried in one arm, and what was chosen.

    Attributes:
        rate: The chosen peak learning rate.
        grid: Everything that was tried, by rising rate.
    """

    rate: float
    grid: tuple[Point, ...]

    @classmethod
    def among(cls, points: Iterable[Point], by: Measure) -> "Choice":
        """Choose the rate that is best by a measure of the validation part, the lower loss among equals."""
        grid = tuple(sorted(points, key=lambda point: point.rate))
        return cls(min(grid, key=lambda point: (by.cost(point), point.loss)).rate, grid)

    @property
    def edge(self) -> int:
        """-1 where the lowest rate that was tried is the chosen one, 1 where the highest is, 0 otherwise."""
        if self.rate == self.grid[0].rate:
            return -1
        return 1 if self.rate == self.grid[-1].rate else 0


class Tuning(msgspec.Struct, frozen=True):
    """How the rates of a task were chosen.

    Attributes:
        task: Name of the task.
        seeds: On which seeds; none of them is ever reported.
        arms: What was tried and chosen in each arm.
    """

    task: str
    seeds: tuple[int, ...]
    arms: dict[Arm, Choice]


def tuning_of(task: str) -> Tuning:
    """Return how the rates of a task were chosen.

    Raises:
        NotFound: If they never were.
    """
    file = resources.files("esper.demos") / "rates" / f"{task}.json"
    if not file.is_file():
        raise NotFound(
            f"the learning rates of {task}", todo=f"python -m esper.demos.tune {task} chooses them", code="ESP-5102"
        )
    return msgspec.json.decode(file.read_bytes(), type=Tuning)
