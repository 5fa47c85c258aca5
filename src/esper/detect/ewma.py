"""How unusual a value is against the smoothed past of its own series, robust to outliers."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from esper.detect.scale import FEWEST_VALUES, repeated_median_line, robust_scale

CUT = 2.0
"""Residuals count as at most this many scales (Gelper et al., section 3)."""
CONSISTENCY = 2.52
"""Makes the expected loss of a standard normal residual 1 at ``CUT`` (the same source)."""
LARGEST = 1e100
"""What is larger has exploded: squares and differences would overflow."""
SMALLEST_SCALE = 1e-12
"""Keeps a series of zeros from dividing by zero."""


class RobustEwma:
    """Level and slope of a series by exponential smoothing, and z-scores of what comes next.

    Forecast ŷ = a + b; residual r = y − ŷ; scale σ² ← λ_σ ρ(r / σ) σ² + (1 − λ_σ) σ², where ρ is the bounded biweight loss;
    the value is replaced by y* = ŷ + σ · clip(r / σ, ±2), and then a' = λ_a y* + (1 − λ_a) ŷ and
    b' = λ_b (a' − a) + (1 − λ_b) b. With the slope, what moves steadily, as norms do in training, is no news.

    Args:
        smoothing: λ_a, in (0, 1].
        slope_smoothing: λ_b, in [0, 1]; 0 smooths the level alone.
        scale_smoothing: λ_σ, in (0, 1].
        warm_up: Values from which the start is estimated, by repeated medians.
        resolution: Smallest scale as a share of the level: finer differences do not matter. Norms in float32 jitter by 1e-7.

    Raises:
        ValueError: If a rate or ``warm_up`` is out of range.

    References:
        Gelper, Fried and Croux 2010, "Robust forecasting with exponential and Holt–Winters smoothing"; 10 is the length of
        their start-up period.
    """

    def __init__(
        self,
        *,
        smoothing: float = 0.2,
        slope_smoothing: float = 0.1,
        scale_smoothing: float = 0.1,
        warm_up: int = FEWEST_VALUES,
        resolution: float = 1e-6,
    ) -> None:
        if not (0 < smoothing <= 1 and 0 <= slope_smoothing <= 1 and 0 < scale_smoothing <= 1):
            raise ValueError("rates lie between 0 and 1")
        if warm_up < FEWEST_VALUES:
            raise ValueError(f"warm_up must be at least {FEWEST_VALUES}, not {warm_up}")
        self._rates = (smoothing, slope_smoothing, scale_smoothing)
        self._warm_up, self._resolution = warm_up, resolution
        self._first: list[float] | None = []
        self._level = self._slope = self._scale = 0.0

    @property
    def warming_up(self) -> bool:
        """Whether there is no history yet to hold a value against."""
        return self._first is not None

    @property
    def forecast(self) -> float:
        """What the next value should be; 0 during warm-up."""
        return self._level + self._slope

    @property
    def scale(self) -> float:
        """By how much the next value may miss the forecast, as a standard deviation; 0 during warm-up."""
        return self._scale

    def observe(self, value: float) -> float | None:
        """Take a value in.

        Args:
            value: The next one, finite and at most ``LARGEST`` in size.

        Returns:
            Its z-score against what came before it, or None during warm-up.

        Raises:
            ValueError: If it is not.
        """
        if not abs(value) <= LARGEST:
            raise ValueError(f"{value} is not finite, or has exploded")
        if self._first is not None:
            self._first.append(value)
            if len(self._first) == self._warm_up:
                self._start(self._first)
                self._first = None
            return None
        z = (value - self.forecast) / self._scale
        self._update(z)
        return z

    def to_dict(self) -> dict[str, Any]:
        """Return what it has seen as plain data, without its settings."""
        first = None if self._first is None else list(self._first)
        return {"first": first, "level": self._level, "slope": self._slope, "scale": self._scale}

    def take(self, seen: Mapping[str, Any]) -> None:
        """Go on from ``to_dict``."""
        self._first = None if seen["first"] is None else list(seen["first"])
        self._level, self._slope, self._scale = seen["level"], seen["slope"], seen["scale"]

    def _start(self, values: list[float]) -> None:
        n = len(values)
        intercept, slope = repeated_median_line(values) if self._rates[1] else (statistics.median(values), 0.0)
        residuals = [value - intercept - slope * i for i, value in enumerate(values)]
        # A fitted line lies nearer to its values than to the next one: n / (n − 2) for the two numbers that were fitted,
        # and 1 + 4 / n for carrying the line one step on (the leverage of the next point of a regular design).
        ahead = math.sqrt(n / (n - 2) * (1 + 4 / n)) if self._rates[1] else 1.0
        self._level, self._slope = intercept + slope * (n - 1), slope
        self._scale = self._at_least(robust_scale(residuals) * ahead)

    def _update(self, z: float) -> None:
        rate, slope_rate, scale_rate = self._rates
        before, forecast = self._level, self.forecast
        self._level = forecast + rate * self._scale * max(-CUT, min(CUT, z))
        self._slope += slope_rate * (self._level - before - self._slope)
        self._scale = self._at_least(self._scale * math.sqrt(1 + scale_rate * (_biweight(z) - 1)))

    def _at_least(self, scale: float) -> float:
        return max(scale, abs(self._level) * self._resolution, SMALLEST_SCALE)


def _biweight(z: float) -> float:
    """Return the bounded loss ρ(z), whose mean over a standard normal is 1."""
    if abs(z) >= CUT:
        return CONSISTENCY
    return CONSISTENCY * (1 - (1 - (z / CUT) ** 2) ** 3)
