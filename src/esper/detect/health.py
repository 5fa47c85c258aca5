"""Health of a place: how far its metrics stand from their own history."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from esper.detect.change import Cusum
from esper.detect.ewma import LARGEST, RobustEwma

RESOLUTION = 0.01
"""Health metrics are of one minibatch; what misses the forecast by less than 1 % of the level is no news."""
MOST_METRICS = 64
"""Metrics of one place that are followed; the senders of this project have fewer than ten."""


def health_score(z_scores: Iterable[float], *, nonfinite: bool = False) -> float | None:
    """Return 1 minus the largest two-sided tail mass of the metrics against their own history.

    The two-sided tail mass of a value is the share of its history that lies nearer to the centre: 2 Φ(|z|) − 1, so that
    the score is the smallest 1 − erf(|z| / √2). One healthy metric scores uniformly between 0 and 1; the more metrics,
    the lower the smallest.

    Args:
        z_scores: Z-score of each metric that has a history.
        nonfinite: Whether something was not finite.

    Returns:
        A number from 0, very unusual, to 1, as always; None while no metric has a history; 0 where something is not finite.

    References:
        Abramowitz and Stegun 1964, 7.1.22 and 26.2.29, for erf and Φ.
    """
    if nonfinite:
        return 0.0
    return min((math.erfc(abs(z) / math.sqrt(2)) for z in z_scores), default=None)


@dataclass(frozen=True)
class MetricReading:
    """One metric against its history.

    Attributes:
        value: What was measured.
        z: Its z-score, or None during warm-up.
        expected: What its history forecast; 0 during warm-up.
        shifted: Whether it has moved for good.
    """

    value: float
    z: float | None
    expected: float
    shifted: bool


@dataclass(frozen=True)
class HealthReading:
    """All metrics of a place at one step.

    Attributes:
        metrics: By name.
        nonfinite: Names of those that were not finite.
        score: The health score.
    """

    metrics: dict[str, MetricReading]
    nonfinite: tuple[str, ...]
    score: float | None

    @property
    def warming_up(self) -> bool:
        """Whether no metric has a history yet."""
        return all(reading.z is None for reading in self.metrics.values())


class PlaceHistory:
    """History of the metrics of one place, in constant memory."""

    def __init__(self) -> None:
        self._metrics: dict[str, tuple[RobustEwma, Cusum]] = {}

    def observe(self, metrics: Mapping[str, float], nonfinite: Iterable[str] = ()) -> HealthReading:
        """Take one step's metrics in; those that are not finite, or beyond 1e100, leave their history as it is.

        Args:
            metrics: Values by name.
            nonfinite: Names of metrics that the sender found not finite.

        Returns:
            Each metric against its history, and the health score.
        """
        bad = {*nonfinite, *(name for name, value in metrics.items() if not abs(value) <= LARGEST)}
        readings = {
            name: reading
            for name, value in metrics.items()
            if name not in bad and (reading := self._read(name, value)) is not None
        }
        z_scores = [reading.z for reading in readings.values() if reading.z is not None]
        return HealthReading(readings, tuple(sorted(bad)), health_score(z_scores, nonfinite=bool(bad)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            name: {"ewma": ewma.to_dict(), "cusum": [cusum.up, cusum.down]}
            for name, (ewma, cusum) in self._metrics.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` returned."""
        history = cls()
        for name, saved in data.items():
            ewma, cusum = RobustEwma(resolution=RESOLUTION), Cusum()
            ewma.take(saved["ewma"])
            cusum.up, cusum.down = saved["cusum"]
            history._metrics[name] = ewma, cusum
        return history

    def _read(self, name: str, value: float) -> MetricReading | None:
        if name not in self._metrics:
            if len(self._metrics) == MOST_METRICS:
                return None
            self._metrics[name] = RobustEwma(resolution=RESOLUTION), Cusum()
        ewma, cusum = self._metrics[name]
        expected = ewma.forecast
        z = ewma.observe(value)
        return MetricReading(value, z, expected, z is not None and cusum.observe(z))
