"""Whether a series of losses still falls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esper.detect.trend import FEWEST_POINTS, fit_line

CLEAR_ERRORS = 2.0
"""A fall or rise is clear beyond two standard errors, as everywhere in this project."""


@dataclass(frozen=True)
class Plateau:
    """What the end of a series does.

    Attributes:
        fall: How far the fitted line falls over the points; negative where it rises.
        error: Standard error of ``fall``.
        least: Smallest fall that would matter.
        points: How many.
    """

    fall: float
    error: float
    least: float
    points: int

    @property
    def flat(self) -> bool:
        """Whether it does not fall: by less than would matter, or by less than its noise tells."""
        return self.fall <= self.threshold

    @property
    def rising(self) -> bool:
        """Whether it clearly rises."""
        return -self.fall > self.threshold

    @property
    def threshold(self) -> float:
        """What a fall must exceed to count."""
        return max(CLEAR_ERRORS * self.error, self.least)


def plateau(losses: Sequence[float], *, least_ratio: float) -> Plateau | None:
    """Test whether a series is still falling.

    A line is fitted by least squares. The series falls if the fitted fall exceeds two of its standard errors and
    ``least_ratio`` of the level at the end. Neighbouring losses are alike, so the error is rather too small: this errs
    towards "still falling".

    Args:
        losses: Losses at equal distances, oldest first.
        least_ratio: Fall that matters, as a share of the level.

    Returns:
        The fall, its error and what it is held against; None where there are fewer than three losses, or one is not finite or
        so large that its line is not.
    """
    if len(losses) < FEWEST_POINTS or not all(map(math.isfinite, losses)):
        return None
    line = fit_line(range(len(losses)), losses)
    if not math.isfinite(line.rise) or not math.isfinite(line.rise_error):
        return None
    return Plateau(-line.rise, line.rise_error, abs(line.end) * least_ratio, line.points)
