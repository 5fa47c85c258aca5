"""Line and scale of a few values, with outliers among them."""

import math
import statistics
from collections.abc import Sequence

FEWEST_VALUES = 10
"""The small-sample factors below hold from here on."""


def repeated_median_line(values: Sequence[float]) -> tuple[float, float]:
    """Return intercept and slope of the line through values at 0, 1, 2, …; half of them may be wrong.

    The slope is the median over i of the median over j of (y_j − y_i) / (j − i).

    References:
        Siegel 1982, "Robust regression using repeated medians".
    """
    n = len(values)
    slopes = (statistics.median((values[j] - values[i]) / (j - i) for j in range(n) if j != i) for i in range(n))
    slope = statistics.median(slopes)
    return statistics.median(value - slope * i for i, value in enumerate(values)), slope


def robust_scale(values: Sequence[float]) -> float:
    """Return the standard deviation that a normal sample of this spread has; half of the values may be wrong.

    Q_n is 2.2219 times the k-th smallest distance between two values, k = C(n // 2 + 1, 2), with a small-sample factor.
    Its efficiency on normal samples is 82 %, that of the median absolute deviation 37 %.

    Raises:
        ValueError: If there are fewer than ten values.

    References:
        Rousseeuw and Croux 1993, "Alternatives to the median absolute deviation"; factors: Croux and Rousseeuw 1992.
    """
    n = len(values)
    if n < FEWEST_VALUES:
        raise ValueError(f"a scale needs {FEWEST_VALUES} values, not {n}")
    distances = sorted(abs(a - b) for i, a in enumerate(values) for b in values[:i])
    factor = n / (n + (1.4 if n % 2 else 3.8))
    return 2.2219 * factor * distances[math.comb(n // 2 + 1, 2) - 1]
