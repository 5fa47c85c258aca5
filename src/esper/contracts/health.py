"""Health of places in the model, as it leaves the trainer."""

from datetime import datetime

import msgspec


class HealthSignal(msgspec.Struct, frozen=True, kw_only=True):
    """Health of one place at one step.

    Attributes:
        layer_id: Name of the slot.
        seed_idx: Index of the seed in the slot.
        timestamp: When it was measured, in UTC.
        metrics: Measured values by name; finite only.
        health_score: 1 minus the largest two-sided tail mass of the metrics against their own history, in [0, 1];
            None during warm-up.
        anomaly_detected: Whether the sender already saw something wrong.
        run_id: The run that it belongs to.
        rank: Process of a distributed run.
        step: Optimizer step.
        nonfinite: Names of metrics whose value was not finite.
    """

    layer_id: str
    seed_idx: int
    timestamp: datetime
    metrics: dict[str, float]
    health_score: float | None = None
    anomaly_detected: bool = False
    run_id: str | None = None
    rank: int = 0
    step: int | None = None
    nonfinite: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.health_score is not None and not 0.0 <= self.health_score <= 1.0:
            raise ValueError(f"health_score must lie in [0, 1], not {self.health_score}")


class HealthBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Health of many places at one step, in one message."""

    run_id: str
    step: int
    signals: tuple[HealthSignal, ...]
