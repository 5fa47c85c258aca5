"""What the analysis of one health signal found."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from esper.contracts.adaptation import Reason


class Direction(StrEnum):
    """Where a metric goes."""

    UNKNOWN = "unknown"
    FLAT = "flat"
    RISING = "rising"
    FALLING = "falling"


@dataclass(frozen=True)
class Trend:
    """The line through a metric's last values.

    Attributes:
        direction: Beyond two standard errors of the slope; unknown before there are enough values.
        slope: Rise per signal, in the metric's unit.
        error: Standard error of ``slope``.
        signals: Values behind it.
    """

    direction: Direction
    slope: float
    error: float
    signals: int


class Advice(StrEnum):
    """What to do about a place."""

    WATCH = "watch"
    HOLD_GROWTH = "hold_growth"
    STOP_AND_LOOK = "stop_and_look"


@dataclass(frozen=True)
class Recommendation:
    """One piece of advice and what it rests on.

    Attributes:
        advice: What to do.
        text: The same as a sentence.
        evidence: Measured values and what they were held against.
    """

    advice: Advice
    text: str
    evidence: tuple[Reason, ...]


@dataclass(frozen=True)
class AnalysisResult:
    """What one signal told.

    Attributes:
        signal_id: Names the signal: layer, seed and, where it is known, step.
        layer_id: Name of the slot.
        seed_idx: Index of the seed in the slot.
        run_id: The run, or None.
        is_anomaly: Whether something is unusual, or was a moment ago.
        requires_intervention: Whether something is not finite, or has stayed unusual.
        warming_up: Whether there is too little history to tell.
        health_score: 1 minus the largest two-sided tail mass of the metrics; None during warm-up.
        trend: By metric.
        recommendations: What to do, the most pressing first; empty where all is well.
    """

    signal_id: str
    layer_id: str
    seed_idx: int
    run_id: str | None
    is_anomaly: bool
    requires_intervention: bool
    warming_up: bool
    health_score: float | None
    trend: Mapping[str, Trend]
    recommendations: tuple[Recommendation, ...]
