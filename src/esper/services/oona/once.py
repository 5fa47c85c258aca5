"""Effects that happen once, although messages may arrive more often."""

import asyncio
from collections import OrderedDict

from esper.ports import Delivery, DeliveryHandler

REMEMBERED = 4096
"""Ids that are remembered: redeliveries follow within seconds, and no stream of this project brings more in that time."""


def once(handler: DeliveryHandler, *, remembered: int = REMEMBERED) -> DeliveryHandler:
    """Wrap a handler so that a message that it has handled is acknowledged without being handled again.

    A handler that failed is called again. A message that comes while it is being handled waits for that to end. What was
    handled is forgotten with the process, and the oldest of many ids before that: an effect that outlives the process keeps
    the message's id in its own transaction, as `esper.services.oona.effects.Effects` does.

    Args:
        handler: Handles a message.
        remembered: Ids that are remembered; those in hand come on top.
    """
    handled: OrderedDict[str, None] = OrderedDict()
    in_hand: dict[str, asyncio.Future[None]] = {}

    async def handle_once(delivery: Delivery) -> None:
        while (other := in_hand.get(delivery.id)) is not None:
            await asyncio.wait([other])
        if delivery.id in handled:
            return
        in_hand[delivery.id] = ended = asyncio.get_running_loop().create_future()
        try:
            await handler(delivery)
            handled[delivery.id] = None
        finally:
            del in_hand[delivery.id]
            ended.set_result(None)
        if len(handled) > remembered:
            handled.popitem(last=False)

    return handle_once
