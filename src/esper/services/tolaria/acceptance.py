"""Whether a graft stays: kept by default, undone on clear harm, every gain with its error.

The error of a gain is not the spread over held-out examples: paired trajectories diverge, so that error is far too small
and keeps 18–45 % of useless grafts. It is the spread of the same difference over windows of this run in which nothing was
grafted (the placebo). That spread is taken around no change, not around the mean change: a run that falls or rises steadily
has none around its mean, and any graft would then be harm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

HARM_SPREADS = 2.0
"""How many placebo spreads worse counts as clear harm (decision 0004)."""
FEWEST_WINDOWS = 3
"""A spread needs at least this many windows."""
LATEST_WINDOWS = 8
"""Older windows are left out: a run moves less the longer it lasts, and its steep start would hide every later harm."""


@dataclass(frozen=True)
class Judgement:
    """What an evaluation found.

    Attributes:
        gain: Fall of the mean held-out loss from before the join to now; positive is better. What training would have
            brought without the graft is in it.
        error: One spread of the same difference over graft-free windows, or None where there are too few.
        windows: Graft-free windows behind ``error``.
        harmful: Whether it is clearly worse.
        why: The same as a sentence.
    """

    gain: float
    error: float | None
    windows: int
    harmful: bool
    why: str


@dataclass(frozen=True)
class Placebo:
    """Root mean square of the loss difference over windows in which nothing was grafted."""

    spread: float
    windows: int


def placebo(losses: Sequence[float], grafted: Sequence[int], *, length: int) -> Placebo | None:
    """Measure how much the held-out loss changes over graft-free windows.

    The latest eight windows of the asked length are used where there are three; otherwise the longest shorter ones of which
    there are three, their spread scaled by the square root of the ratio of lengths, as for a random walk, which errs towards
    keeping.

    Args:
        losses: Mean held-out loss of the averaged weights at each boundary, oldest first.
        grafted: Indices of boundaries after which the loss is not that of a graft-free training: a graft joined or left
            there, or was on trial.
        length: Boundaries from the join to the verdict.

    Returns:
        The spread in the unit of the loss, or None where there are too few windows.
    """
    for span in range(length, 0, -1):
        changes = [
            change
            for start in range(len(losses) - span)
            if math.isfinite(change := losses[start + span] - losses[start])
            and not any(start <= boundary < start + span for boundary in grafted)
        ]
        if len(changes) >= FEWEST_WINDOWS:
            latest = changes[-LATEST_WINDOWS:]
            square = sum(change * change for change in latest) / len(latest)
            return Placebo(math.sqrt(square * length / span), len(latest))
    return None


def judge(before: float, now: float, control: Placebo | None) -> Judgement:
    """Hold the loss after a graft against the loss before it.

    Args:
        before: Mean held-out loss of the averaged weights before the join.
        now: The same now.
        control: What graft-free windows of this run did.

    Returns:
        The verdict: kept unless the loss is not finite, or worse by more than two placebo spreads.
    """
    gain = before - now
    if not math.isfinite(now):
        return Judgement(
            gain, control.spread if control else None, control.windows if control else 0, True, "loss is not finite"
        )
    if control is None:
        return Judgement(gain, None, 0, False, f"{_moved(gain)}; too few graft-free windows to tell harm from noise")
    harmful = -gain > HARM_SPREADS * control.spread
    verdict = "clear harm" if harmful else "no clear harm"
    why = f"{_moved(gain)} ± {control.spread:.3g} (over {control.windows} graft-free windows, which may overlap): {verdict}"
    return Judgement(gain, control.spread, control.windows, harmful, why)


def _moved(gain: float) -> str:
    return f"held-out loss {'fell' if gain >= 0 else 'rose'} by {abs(gain):.3g}"
