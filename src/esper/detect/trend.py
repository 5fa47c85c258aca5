"""Straight lines through series, with the error of their slope."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FEWEST_POINTS = 3
"""A line goes through two points exactly; its error needs a third."""


@dataclass(frozen=True)
class Line:
    """A line that was fitted to points.

    Attributes:
        slope: Rise per unit of x.
        error: Standard error of ``slope`` where deviations from the line are independent and alike.
        end: Height of the line at the last x.
        span: From the first x to the last.
        points: How many.
    """

    slope: float
    error: float
    end: float
    span: float
    points: int

    @property
    def rise(self) -> float:
        """How far the line rises over all points."""
        return self.slope * self.span

    @property
    def rise_error(self) -> float:
        """Standard error of ``rise``."""
        return self.error * self.span


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Fit a line by least squares.

    Slope S_xy / S_xx; its error is √((S_yy − S_xy² / S_xx) / ((n − 2) S_xx)).

    Args:
        xs: Positions, rising.
        ys: Values, as many.

    Raises:
        ValueError: If there are fewer than three points, or the positions do not rise.

    References:
        Draper and Smith 1998, "Applied Regression Analysis", section 1.4.
    """
    n = len(xs)
    if n != len(ys) or n < FEWEST_POINTS:
        raise ValueError(f"a trend needs {FEWEST_POINTS} points, not {n} positions and {len(ys)} values")
    if not all(a < b for a, b in pairwise(xs)):
        raise ValueError("positions must rise")
    size = max(map(abs, ys)) or 1.0  # squares of an exploding loss would overflow
    x_mean, y_mean = math.fsum(xs) / n, math.fsum(y / size for y in ys) / n
    dx, dy = [x - x_mean for x in xs], [y / size - y_mean for y in ys]
    sxx = math.fsum(x * x for x in dx)
    slope = math.fsum(x * y for x, y in zip(dx, dy, strict=True)) / sxx
    squares = math.fsum((y - slope * x) ** 2 for x, y in zip(dx, dy, strict=True))
    error = math.sqrt(squares / ((n - 2) * sxx))
    return Line(slope * size, error * size, (y_mean + slope * dx[-1]) * size, xs[-1] - xs[0], n)


class RunningTrend:
    """Least-squares line through the last values of a series, one unit apart, in constant time per value.

    Sums are kept relative to an anchor and formed anew once per window, so that rounding does not add up. Values beyond 1e100
    are not meant: their squares would overflow.

    Args:
        window: Values that count.

    Raises:
        ValueError: If ``window`` is below three.
    """

    def __init__(self, window: int) -> None:
        if window < FEWEST_POINTS:
            raise ValueError(f"a window holds at least {FEWEST_POINTS} values, not {window}")
        self._values: deque[float] = deque(maxlen=window)
        self._window = window
        self._anchor = self._sum = self._weighted = self._squares = 0.0
        self._since_anchored = 0

    def __len__(self) -> int:
        return len(self._values)

    def observe(self, value: float) -> None:
        """Take the next value in; the oldest beyond the window goes."""
        if self._since_anchored == 0:
            self._values.append(value)
            self._form_anew()
        else:
            self._slide(value)
        self._since_anchored = (self._since_anchored + 1) % self._window

    def line(self) -> Line | None:
        """Return the line, or None while there are fewer than three values."""
        n = len(self._values)
        if n < FEWEST_POINTS:
            return None
        middle, mean = (n - 1) / 2, self._sum / n
        sxx = n * (n * n - 1) / 12
        sxy = self._weighted - middle * self._sum
        slope = sxy / sxx
        squares = max(0.0, self._squares - n * mean * mean - slope * sxy)
        return Line(slope, math.sqrt(squares / ((n - 2) * sxx)), self._anchor + mean + slope * middle, n - 1.0, n)

    def _slide(self, value: float) -> None:
        if len(self._values) == self._window:
            gone = self._values[0] - self._anchor
            self._sum -= gone
            self._squares -= gone * gone
            self._weighted -= self._sum  # what remains moves one place forward
        self._values.append(value)
        offset = value - self._anchor
        self._sum += offset
        self._squares += offset * offset
        self._weighted += (len(self._values) - 1) * offset

    def _form_anew(self) -> None:
        self._anchor = math.fsum(self._values) / len(self._values)
        offsets = [value - self._anchor for value in self._values]
        self._sum = math.fsum(offsets)
        self._squares = math.fsum(offset * offset for offset in offsets)
        self._weighted = math.fsum(place * offset for place, offset in enumerate(offsets))
