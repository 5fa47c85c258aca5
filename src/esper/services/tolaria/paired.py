"""What a graft gained over a twin that was trained without it, with an error that covers how such pairs drift apart.

The standard error over held-out examples is far too small: it says how well the loss of these very weights is known, and two
trainings of one model drift apart by chance. Here that drift is taken from the pair itself: from boundary to boundary the
difference of their losses moves by a step, and were there no effect it would be the sum of such steps, a random walk that
begins at 0, as a newborn changes nothing. The variance of a step around the mean step, times the number of boundaries, is then
the variance of the difference. It is widened by Student's t, as a run has few boundaries. Where the difference only trembles
around its value, this overstates the error, which errs towards keeping.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import variance

from esper.services.tolaria.acceptance import HARM_SPREADS, Judgement

FEWEST_BOUNDARIES = 3
"""Two steps at least have a variance."""
STUDENT = (13.97, 4.53, 3.31, 2.87, 2.65, 2.52, 2.43, 2.37, 2.32, 2.28)
"""Student's t that is exceeded as rarely as two normal deviations (2.3 %), by degrees of freedom; the last for more."""


@dataclass(frozen=True)
class Difference:
    """How much lower the held-out loss of the grown arm is at one boundary.

    Attributes:
        mean: Mean over the held-out losses, the twin's less that of the grown arm; positive is better.
        error: Standard error of that mean over the held-out losses, pair by pair; 0 where there is one only.
    """

    mean: float
    error: float


def judge_pair(found: Sequence[Difference]) -> Judgement | None:
    """Judge a graft by its twin.

    Args:
        found: The difference at each boundary since the join, the oldest first.

    Returns:
        The verdict: kept unless it is worse by more than two errors; None before the third boundary.
    """
    count = len(found)
    if count < FEWEST_BOUNDARIES:
        return None
    gain = found[-1].mean
    steps = [later.mean - earlier.mean for earlier, later in pairwise(found)]
    widened = STUDENT[min(len(steps) - 1, len(STUDENT)) - 1] / HARM_SPREADS
    drift = widened * math.sqrt(count * variance(steps))
    error = math.hypot(drift, found[-1].error)
    harmful = -gain > HARM_SPREADS * error
    where = "below" if gain >= 0 else "above"
    why = (
        f"held-out loss lies {abs(gain):.3g} {where} that of its twin ± {error:.3g} (drift of the pair over {count} boundaries "
        f"{drift:.3g}, paired standard error {found[-1].error:.3g}): {'clear harm' if harmful else 'no clear harm'}"
    )
    return Judgement(gain, error, count, harmful, why)
