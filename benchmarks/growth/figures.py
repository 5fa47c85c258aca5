"""Paired differences between arms, with their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student


@dataclass(frozen=True)
class Difference:
    """One arm less another, seed by seed.

    Attributes:
        mean: Of the differences.
        error: Standard error of that mean.
        reach: Half of the confidence interval, at 95 % for all comparisons of a table together (Bonferroni).
        seeds: How many.
    """

    mean: float
    error: float
    reach: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether it differs from nothing by two standard errors."""
        return abs(self.mean) >= 2 * self.error

    def at_least(self, margin: float) -> bool:
        """Whether it lies above a margin with two standard errors to spare."""
        return self.mean - 2 * self.error >= margin

    def to_json(self) -> dict[str, Any]:
        """Return it rounded, as it stands in tables."""
        return {
            "mean": round(self.mean, 4),
            "error": round(self.error, 4),
            "interval": round(self.reach, 4),
            "seeds": self.seeds,
        }

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f}"


def paired(ours: Sequence[float], theirs: Sequence[float], *, comparisons: int = 1) -> Difference:
    """Return the mean of the paired differences.

    Args:
        ours: One value per seed.
        theirs: The same seeds in the same order.
        comparisons: How many the table makes; the interval is widened for all of them.
    """
    found = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(found) < 2:
        return Difference(fmean(found), inf, inf, len(found))
    error = stdev(found) / sqrt(len(found))
    quantile = float(student.ppf(1 - 0.025 / comparisons, len(found) - 1))
    return Difference(fmean(found), error, quantile * error, len(found))


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Return a mean and its standard error."""
    return fmean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else inf
