"""Readers for tests of a bus: what they are handed is kept, and they fail when they are told to."""

import asyncio

from esper.ports import Acknowledge, Delivery, DeliveryHandler, MessageBus

LIMIT_S = 10.0
STREAM = "contract.numbers"


class Reader:
    """Keeps what it is handed, and fails when it is told to.

    Args:
        failures: How many of the first calls fail.
    """

    def __init__(self, *, failures: int = 0) -> None:
        self.deliveries: list[Delivery] = []
        self._failures = failures
        self._more = asyncio.Condition()

    async def __call__(self, delivery: Delivery) -> None:
        """Take one message."""
        async with self._more:
            self.deliveries.append(delivery)
            self._more.notify_all()
        if len(self.deliveries) <= self._failures:
            raise RuntimeError(f"planted failure {len(self.deliveries)}")

    async def wait_for(self, count: int) -> list[Delivery]:
        """Return the deliveries once there are ``count`` of them."""
        async with self._more, asyncio.timeout(LIMIT_S):
            await self._more.wait_for(lambda: len(self.deliveries) >= count)
        return self.deliveries

    @property
    def numbers(self) -> list[object]:
        """The number in each message."""
        return [delivery.body["n"] for delivery in self.deliveries if isinstance(delivery.body, dict)]


class Reading:
    """A subscription that runs in a task and is ended with the block."""

    def __init__(
        self,
        bus: MessageBus,
        reader: DeliveryHandler,
        *,
        stream: str = STREAM,
        group: str = "readers",
        start: str = "0",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        self._work = bus.subscribe(stream, group, reader, start_from=start, acknowledge=acknowledge)

    async def __aenter__(self) -> "asyncio.Task[None]":
        self._task: asyncio.Task[None] = asyncio.ensure_future(self._work)
        await asyncio.sleep(0)
        return self._task

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended
