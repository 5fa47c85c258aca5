"""Effects that happen once, although messages may arrive more often."""

from collections import OrderedDict

from esper.ports import Delivery, DeliveryHandler

REMEMBERED = 4096
"""Ids that are remembered: redeliveries follow within seconds, and no stream of this project brings more in that time."""


def once(handler: DeliveryHandler, *, remembered: int = REMEMBERED) -> DeliveryHandler:
    """Wrap a handler so that a message that it has handled is acknowledged without being handled again.

    A handler that failed is called again. What was handled is forgotten with the process: an effect that outlives it keeps
    the message's id in its own transaction.

    Args:
        handler: Handles a message.
        remembered: Ids that are remembered.
    """
    handled: OrderedDict[str, None] = OrderedDict()

    async def handle_once(delivery: Delivery) -> None:
        if delivery.id in handled:
            return
        await handler(delivery)
        handled[delivery.id] = None
        if len(handled) > remembered:
            handled.popitem(last=False)

    return handle_once
