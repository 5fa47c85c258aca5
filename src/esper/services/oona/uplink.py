"""Carries what the parts of one process say to a bus that other processes are on."""

import asyncio
from collections.abc import Iterable

from esper.contracts.topics import COMPILATIONS, DECISIONS, EPOCHS, HEALTH, OUTCOMES, Topic
from esper.errors import BusUnavailable, Unavailable
from esper.ports import Delivery, MessageBus
from esper.telemetry.logs import get_logger

GROUP = "uplink"
TOPICS = (HEALTH, DECISIONS, OUTCOMES, COMPILATIONS, EPOCHS)

_PAUSE_S = 1.0

_log = get_logger("oona.uplink")


class Uplink:
    """Publishes each message of one bus on another, under the id that it has, in order by stream.

    While the other bus is gone nothing is lost of what may not be lost: a message is tried until it is there. Health waits
    in its stream, which drops the oldest.

    Args:
        bus: Where messages come from: that of this process.
        shared: Where they go.
        topics: Streams that are carried.

    Attributes:
        carried: Messages that the other bus has taken.
        outages: How often it did not take one.
    """

    def __init__(self, bus: MessageBus, shared: MessageBus, topics: Iterable[Topic] = TOPICS) -> None:
        self.carried = self.outages = 0
        self._bus, self._shared, self._topics = bus, shared, tuple(topics)

    async def run(self) -> None:
        """Carry until the bus of this process is closed."""
        async with asyncio.TaskGroup() as tasks:
            for topic in self._topics:
                tasks.create_task(self._follow(topic.stream))

    async def _follow(self, stream: str) -> None:
        try:
            await self._bus.subscribe(stream, GROUP, self._carry, start_from="0")
        except BusUnavailable:
            _log.info("stream_ended", topic=stream)

    async def _carry(self, delivery: Delivery) -> None:
        while True:
            try:
                await self._shared.publish(
                    delivery.stream, delivery.body, run_id=delivery.run_id, message_id=delivery.id
                )
            except Unavailable as error:
                self.outages += 1
                _log.warning("not_carried", topic=delivery.stream, why=str(error))
                await asyncio.sleep(_PAUSE_S)
            else:
                self.carried += 1
                return
