"""The message bus as the specification calls it: dictionaries in, dictionaries out."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Self, TypeAlias

import msgspec
from pydantic import BaseModel

from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.topics import HEALTH, Message
from esper.errors import ConfigError, ContractError
from esper.ports import Acknowledge, Delivery
from esper.runtime.closing import Closing
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig

DataHandler: TypeAlias = Callable[[dict[str, object]], Awaitable[None]]


class OonaClient(Closing):
    """A client of the message bus on Redis Streams.

    A dictionary sent to a stream that no contract is declared for arrives as an equal one. On a declared stream it must keep
    the contract, and arrives with every field of it. A single health signal may be sent to ``telemetry.seed.health``, and
    each signal of a batch is handed out by itself.

    Delivery is at least once: a message whose handler failed comes again, and goes to the stream ``{stream}.dead`` after the
    last try. ``RedisBus`` has the same with typed messages.

    Args:
        redis_url: Where Redis is.
        config: Limits, with an address that is not used.
    """

    def __init__(self, redis_url: str = "redis://localhost:6379", *, config: RedisBusConfig | None = None) -> None:
        self._config = (config or RedisBusConfig()).model_copy(update={"url": redis_url})
        self._bus = RedisBus(self._config)
        self._lock = asyncio.Lock()
        self._connected = False

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def connect(self) -> None:
        """Return once Redis has answered; a client that was closed is opened again.

        Raises:
            BusUnavailable: If Redis does not answer.
        """
        async with self._lock:
            if not self._connected:
                await self._bus.connect()
                self._connected = True

    async def publish(self, stream_key: str, data: Message) -> str:
        """Append a message to a stream; ``data`` is never changed.

        Args:
            stream_key: Name of the stream, such as ``telemetry.seed.health``.
            data: A dictionary, or a contract.

        Returns:
            The message's id, which is the same whenever it is handed out.

        Raises:
            BusUnavailable: If Redis does not answer.
            ContractError: If the data do not keep the contract of the stream.
        """
        await self.connect()
        message = _batched(data) if stream_key == HEALTH.stream else data
        run_id = message.run_id or None if isinstance(message, HealthBatch) else None
        return await self._bus.publish(stream_key, message, run_id=run_id)

    async def subscribe(
        self,
        stream_key: str,
        group_name: str,
        handler: DataHandler,
        start_from: str = ">",
        *,
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        """Hand messages to ``handler`` until the client is closed.

        Args:
            stream_key: Name of the stream.
            group_name: Its members share the work; other groups see every message too.
            handler: Is given the data of a message, and returns when its effect is durable.
            start_from: Where a new group begins: ``">"`` with new messages, ``"0"`` with the oldest one held.
            acknowledge: When a message counts as acknowledged: once its handler has returned, or before it is called.

        Raises:
            BusUnavailable: If Redis does not answer at the beginning; an outage later ends nothing.
            ConfigError: If ``start_from`` is neither.
        """
        await self.connect()

        async def hand_out(delivery: Delivery) -> None:
            for data in _unbatched(delivery.body):
                await handler(data)

        await self._bus.subscribe(stream_key, group_name, hand_out, start_from=start_from, acknowledge=acknowledge)

    async def create_topic(self, topic: str, max_length: int = 10000) -> None:
        """Make a stream that keeps about ``max_length`` messages; nothing is published to it.

        The limit holds for what this client publishes; that of a declared stream is in the table of topics.

        Raises:
            BusUnavailable: If Redis does not answer.
            ConfigError: If ``max_length`` is no positive number.
        """
        if max_length < 1:
            raise ConfigError(f"a stream cannot keep {max_length} messages", todo="keep 1 or more")
        await self.connect()
        await self._bus.create_topic(topic, max_length=max_length)

    async def list_topics(self) -> list[str]:
        """Return the names of all streams that Redis holds, sorted.

        Raises:
            BusUnavailable: If Redis does not answer.
        """
        await self.connect()
        return await self._bus.streams()

    async def close(self) -> None:
        """Let each handler finish the message in hand, and end every subscription."""
        async with self._lock:
            await self._bus.close()
            self._bus, self._connected = RedisBus(self._config), False


def _batched(data: Message) -> Message:
    """Return a single health signal as a batch of one; a dictionary without a time was measured now."""
    if isinstance(data, dict) and "layer_id" in data:
        try:
            data = msgspec.convert({"timestamp": datetime.now(UTC)} | data, HealthSignal, strict=False)
        except msgspec.ValidationError as error:
            raise ContractError(f"the data are no HealthSignal, as {HEALTH.stream} carries", why=str(error)) from error
    if isinstance(data, HealthSignal):
        return HealthBatch(run_id=data.run_id or "", step=data.step or 0, signals=(data,))
    return data


def _unbatched(body: Message) -> list[dict[str, object]]:
    if isinstance(body, HealthBatch):
        return [msgspec.structs.asdict(signal) for signal in body.signals]
    if isinstance(body, BaseModel):
        return [body.model_dump()]
    return [body if isinstance(body, dict) else msgspec.structs.asdict(body)]
