"""The call of a handler."""

from collections.abc import Awaitable

from esper.ports import Delivery, DeliveryHandler
from esper.telemetry.tracing import traced, traceparent, usable


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


async def _handed_traced(handler: DeliveryHandler, delivery: Delivery, trace: str | None) -> None:
    with traced(trace):
        await handler(delivery)
