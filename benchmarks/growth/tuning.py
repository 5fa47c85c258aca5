"""Choosing the learning rate of every arm with equal effort, on seeds that are never reported."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import msgspec

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Outcome, Run

FIRST_TUNING_SEED = 1000
"""Reported seeds count from 0."""
STEP = 2.0
MOST_EXTENSIONS = 3

Make = Callable[[float, int], Run]
"""From a peak rate and a seed to a run."""


class Point(msgspec.Struct, frozen=True):
    """One rate as it was tried: mean validation loss over the tuning seeds."""

    rate: float
    loss: float


class Choice(msgspec.Struct, frozen=True):
    """What was tried in one arm, and what was chosen.

    Attributes:
        rate: The chosen peak rate.
        at_edge: Whether it still is the lowest or highest that was tried, after every extension of the grid.
        grid: Everything that was tried, by rising rate.
        outcomes: Of the chosen rate, one per tuning seed.
    """

    rate: float
    at_edge: bool
    grid: tuple[Point, ...]
    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what a reader wants to see of it."""
        return {
            "rate": self.rate,
            "at_edge": self.at_edge,
            "grid": {f"{p.rate:g}": round(p.loss, 5) for p in self.grid},
        }


def tuned(
    bench: Bench,
    arms: Mapping[str, Make],
    *,
    grid: Sequence[float],
    seeds: Sequence[int],
    extensions: int = MOST_EXTENSIONS,
) -> dict[str, Choice]:
    """Choose a rate for each arm by its mean validation loss; all arms are tried side by side.

    Where the best rate lies at an edge, the grid grows by a factor of two in that direction.

    Args:
        bench: Trains the runs.
        arms: How to make a run of each arm.
        grid: Rates to begin with.
        seeds: To try them on.
        extensions: How often the grid may grow.
    """
    tried: dict[str, dict[float, list[Outcome]]] = {arm: {} for arm in arms}
    wanted: dict[str, list[float]] = {arm: sorted(grid) for arm in arms}
    for _ in range(extensions + 1):
        jobs = [(arm, rate, seed) for arm, rates in wanted.items() for rate in rates for seed in seeds]
        runs = [msgspec.structs.replace(arms[arm](rate, seed), read_test=False) for arm, rate, seed in jobs]
        for (arm, rate, _), outcome in zip(jobs, bench.outcomes(runs), strict=True):
            tried[arm].setdefault(rate, []).append(outcome)
        wanted = {arm: [further] for arm, found in tried.items() if (further := _beyond(found)) is not None}
        if not wanted:
            break
    return {arm: _choice(found) for arm, found in tried.items()}


def _beyond(tried: Mapping[float, Sequence[Outcome]]) -> float | None:
    best = _best(tried)
    if best == min(tried):
        return best / STEP
    return best * STEP if best == max(tried) else None


def _choice(tried: Mapping[float, Sequence[Outcome]]) -> Choice:
    best = _best(tried)
    points = tuple(Point(rate, _loss(tried[rate])) for rate in sorted(tried))
    return Choice(best, best in (min(tried), max(tried)), points, tuple(tried[best]))


def _best(tried: Mapping[float, Sequence[Outcome]]) -> float:
    return min(tried, key=lambda rate: _loss(tried[rate]))


def _loss(outcomes: Sequence[Outcome]) -> float:
    losses = [outcome.validation_loss for outcome in outcomes]
    return fmean(losses) if all(loss == loss for loss in losses) else float("inf")
