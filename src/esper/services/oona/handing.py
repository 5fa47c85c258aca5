"""The call of a handler."""

from collections.abc import Awaitable
from datetime import UTC, datetime

from esper.contracts.envelope import Attempt
from esper.ports import Delivery, DeliveryHandler
from esper.telemetry.tracing import traced, traceparent, usable

MOST_ATTEMPTS = 16
"""Tries that go with a dead letter; ``max_tries`` is three where nobody sets it."""


def handed(handler: DeliveryHandler, delivery: Delivery, trace: str | None) -> Awaitable[None]:
    """Call a handler within the trace of its message.

    Args:
        handler: Whom to call.
        delivery: What it is handed.
        trace: The trace context that the message came with.
    """
    if trace == traceparent():  # mostly there is none: then nothing needs to be set and set back
        return handler(delivery)
    return _handed_traced(handler, delivery, usable(trace))


def noted(history: tuple[Attempt, ...], error: Exception) -> tuple[Attempt, ...]:
    """Return the tries at a message with one more that failed; the newest few, where there are many."""
    attempt = Attempt(at=datetime.now(UTC), reason=f"{type(error).__name__}: {error}")
    return (*history, attempt)[-MOST_ATTEMPTS:]


async def _handed_traced(handler: DeliveryHandler, delivery: Delivery, trace: str | None) -> None:
    with traced(trace):
        await handler(delivery)
