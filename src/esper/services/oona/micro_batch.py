"""Many small messages in few writes: batches bounded in size and in time, and one future for each message."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.ids import MessageId
from esper.contracts.topics import HEALTH, Message
from esper.errors import BusUnavailable, ContractError
from esper.ports import MessageBus
from esper.runtime.closing import Closing
from esper.runtime.waits import Bell


class MicroBatchConfig(BaseModel):
    """Bounds of a batch.

    Attributes:
        max_messages: Messages, or health signals, in one batch.
        max_wait_s: How long the first of a batch waits for others.
        max_waiting: Messages on their way; who adds more has to wait.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_messages: int = Field(default=100, ge=1)
    max_wait_s: float = Field(default=0.005, ge=0)
    max_waiting: int = Field(default=10_000, ge=1)


@runtime_checkable
class PublishesMany(Protocol):
    """A bus that can take several messages of a stream at once."""

    async def publish_many(
        self, stream: str, messages: Sequence[Message], *, run_id: str | None = None
    ) -> list[MessageId]:
        """Append messages to a stream, in order, and return their ids."""
        ...


Sent: TypeAlias = "asyncio.Future[MessageId]"
Answer: TypeAlias = MessageId | Exception
Key = TypeVar("Key")
Item = TypeVar("Item")


class _Batches(Generic[Key, Item]):
    """Collects items by key, and sends each batch when it is full or old enough; one batch of a key at a time.

    Args:
        send: Returns for each item of a batch its id or its error, or raises the error of all.
        config: Bounds.
    """

    def __init__(
        self, send: Callable[[Key, list[Item]], Awaitable[Sequence[Answer]]], config: MicroBatchConfig | None
    ) -> None:
        self._send, self._config = send, config or MicroBatchConfig()
        self._waiting: dict[Key, list[tuple[Item, Sent]]] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._full, self._room = Bell(), Bell()
        self._count = 0
        self._closed = False

    async def add(self, key: Key, item: Item) -> Sent:
        """Take an item; where too many are on their way, wait for room."""
        if self._count >= self._config.max_waiting:
            await self._room.wait_for(lambda: self._count < self._config.max_waiting or self._closed)
        if self._closed:
            raise BusUnavailable("the batcher is closed", todo="open a new one")
        sent: Sent = asyncio.get_running_loop().create_future()
        if key not in self._waiting:
            self._waiting[key] = []
            self._tasks[key] = asyncio.create_task(self._empty(key), name="oona-batch")
        waiting = self._waiting[key]
        waiting.append((item, sent))
        self._count += 1
        if len(waiting) == self._config.max_messages:
            self._full.ring()
        return sent

    async def close(self) -> None:
        """Send what waits, and take nothing more."""
        self._closed = True
        self._room.ring()
        self._full.ring()
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _empty(self, key: Key) -> None:
        most = self._config.max_messages
        while self._waiting[key]:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.max_wait_s):
                    await self._full.wait_for(lambda: len(self._waiting[key]) >= most or self._closed)
            batch, self._waiting[key] = self._waiting[key][:most], self._waiting[key][most:]
            await self._deliver(key, batch)
            self._count -= len(batch)
            self._room.ring()
        del self._tasks[key], self._waiting[key]

    async def _deliver(self, key: Key, batch: list[tuple[Item, Sent]]) -> None:
        answers: Sequence[Answer]
        try:
            answers = await self._send(key, [item for item, _ in batch])
        except Exception as error:  # The senders get it, whatever it is.
            answers = [error] * len(batch)
        for (_, sent), answer in zip(batch, answers, strict=True):
            if sent.done():
                continue
            if isinstance(answer, Exception):
                sent.set_exception(answer)
            else:
                sent.set_result(answer)


class MicroBatcher(Closing):
    """Publishes over any bus in batches; messages of one stream and run keep their order.

    A batch leaves when it is full, or when its first message has waited long enough. Every message has a future of its own: it
    is done with the id, or with the error, once the bus has taken or refused the message.

    Args:
        bus: Takes the batches.
        config: Bounds.
    """

    def __init__(self, bus: MessageBus, config: MicroBatchConfig | None = None) -> None:
        self._bus = bus
        self._batches: _Batches[tuple[str, str | None], Message] = _Batches(self._publish, config)

    async def add(self, stream: str, message: Message, *, run_id: str | None = None) -> Sent:
        """Take a message, and return its future; where too many are on their way, wait for room first.

        Raises:
            BusUnavailable: If the batcher is closed.
        """
        return await self._batches.add((stream, run_id), message)

    async def close(self) -> None:
        """Send what waits, and take nothing more."""
        await self._batches.close()

    async def _publish(self, key: tuple[str, str | None], messages: list[Message]) -> list[Answer]:
        stream, run_id = key
        if isinstance(self._bus, PublishesMany):
            with suppress(ContractError):  # Nothing was sent then; one by one, only the broken message is refused.
                return list(await self._bus.publish_many(stream, messages, run_id=run_id))
        return [await self._one(stream, message, run_id) for message in messages]

    async def _one(self, stream: str, message: Message, run_id: str | None) -> Answer:
        try:
            return await self._bus.publish(stream, message, run_id=run_id)
        except Exception as error:  # Its sender gets it, whatever it is.
            return error


class HealthBatcher(Closing):
    """Publishes health signals over any bus, those of one run and step in one envelope.

    Args:
        bus: Takes the batches.
        config: Bounds.
    """

    def __init__(self, bus: MessageBus, config: MicroBatchConfig | None = None) -> None:
        self._bus = bus
        self._batches: _Batches[tuple[str, int], HealthSignal] = _Batches(self._publish, config)

    async def add(self, signal: HealthSignal) -> Sent:
        """Take a signal, and return a future of the id of the envelope that carries it.

        Raises:
            BusUnavailable: If the batcher is closed.
            ContractError: If the signal does not say its run and step.
        """
        if signal.run_id is None or signal.step is None:
            raise ContractError("a health signal cannot be sent", why="it names no run_id or no step", todo="set both")
        return await self._batches.add((signal.run_id, signal.step), signal)

    async def close(self) -> None:
        """Send what waits, and take nothing more."""
        await self._batches.close()

    async def _publish(self, key: tuple[str, int], signals: list[HealthSignal]) -> list[Answer]:
        run_id, step = key
        batch = HealthBatch(run_id=run_id, step=step, signals=tuple(signals))
        return [await self._bus.publish(HEALTH.stream, batch, run_id=run_id)] * len(signals)
