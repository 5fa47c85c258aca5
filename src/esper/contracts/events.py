"""Small announcements on the bus."""

import msgspec


class BlueprintSubmitted(msgspec.Struct, frozen=True, kw_only=True):
    """A blueprint waits for the forge."""

    blueprint_id: str
    priority: int = 5


class CompilationEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A blueprint moved on in the forge.

    Attributes:
        status: ``queued``, ``started``, ``compiled``, ``finished`` (what its level adds is there), ``rejected``, ``failed``,
            ``quarantined`` or ``withdrawn``.
        kernel_id: The kernel, once there is one.
        reason: Why it was rejected or failed, or has not all that its level adds.
        elapsed_ms: Time since the work was claimed.
        queue_position: Place in the queue, from 1, where it is queued; it is told again when it has changed.
        eta_s: Seconds until the kernel is expected, from the times of the latest builds of its level; None while none of that
            level was measured.
    """

    blueprint_id: str
    status: str
    kernel_id: str | None = None
    reason: str = ""
    elapsed_ms: float = 0.0
    queue_position: int | None = None
    eta_s: float | None = None


class EpochEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A trainer finished an epoch."""

    run_id: str
    epoch: int
    step: int
    metrics: dict[str, float] = {}
