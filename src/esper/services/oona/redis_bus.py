"""The bus between processes, on Redis Streams (Redis 7.0 or newer, or Valkey)."""

import asyncio
import itertools
import os
import platform
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from esper.contracts.envelope import Envelope
from esper.contracts.ids import MessageId
from esper.contracts.topics import Message
from esper.errors import BusUnavailable, ConfigError, EsperError
from esper.ports import Acknowledge, DeliveryHandler
from esper.runtime.closing import Closing
from esper.services.oona.codec import Codec
from esper.services.oona.redis_fields import append_many, append_one, key_of, stream_of
from esper.services.oona.redis_link import Command, Link
from esper.services.oona.redis_member import GroupCounts, Member, Place
from esper.telemetry.bus_metrics import BusTimes, Tally, Waiting
from esper.telemetry.logs import get_logger

log = get_logger("oona.redis")

_CANCEL_LIMIT_S = 1.0
"""How long a cancelled handler may take to end."""

_MOST_AT_ONCE = 256
"""Messages in one command; Redis does nothing else while it appends them."""

_SERIAL = itertools.count()


class RedisBusConfig(BaseModel):
    """Where Redis is, and the limits of this process on it.

    Attributes:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user and database where they are needed; what redis-py knows of TLS
            follows as ``?ssl_ca_certs=/path&ssl_certfile=…``.
        password_file: File that holds the password, so that it need not stand in the address.
        name: Name of this process in its groups. A process that is started again under the same name goes on with what it
            held; two that run at once need two. Empty: host name, process id and a number.
        max_length: Messages kept per stream (about), where the topic does not allow fewer.
        max_tries: How often a message is handed out before it goes to the dead letters.
        retry_delay_s: Pause before the second try; it doubles with every further one.
        concurrency: Handlers of one subscription that run at once; order is kept with 1 only.
        batch: Messages read at once per handler, which wait while it runs; 1 where handlers run long.
        claim_idle_s: A member that shows no sign of life for so long is dead, and its messages go to others.
        block_s: How long a read waits for a message; a subscription ends within it.
        reply_limit_s: How long a command may take.
        publish_limit_s: How long ``publish`` goes on trying.
        close_limit_s: How long a handler may go on after the bus was closed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default="redis://localhost:6379", repr=False)
    password_file: Path | None = None
    name: str = ""
    max_length: int = Field(default=10_000, ge=1)
    max_tries: int = Field(default=3, ge=1)
    retry_delay_s: float = Field(default=0.05, ge=0)
    concurrency: int = Field(default=1, ge=1, le=256)
    batch: int = Field(default=64, ge=1)
    claim_idle_s: float = Field(default=30.0, gt=0)
    block_s: float = Field(default=0.25, gt=0, le=5)
    reply_limit_s: float = Field(default=2.0, gt=0)
    publish_limit_s: float = Field(default=5.0, gt=0)
    close_limit_s: float = Field(default=5.0, ge=0)


class RedisBus(Closing):
    """Implements `esper.ports.MessageBus` on Redis Streams.

    Delivery is at least once: a message is acknowledged after its handler has returned, in batches; one that a dead member
    held goes to another after ``claim_idle_s``; a message whose tries are used up is moved to the dead letters in the
    transaction of its acknowledgement. A handler that must act once wraps itself in `esper.services.oona.once.once`, or
    keeps the message's id in its own transaction: a publish whose answer was lost is sent again with the same id.
    Where a subscription acknowledges on receipt, what its member has read and not begun is lost with it, too.

    A stream keeps its newest ``max_length`` messages. A writer does not wait for a slow group: what is trimmed before a
    group saw it is counted in ``counts()`` and logged.

    Args:
        config: Address and limits.
        codec: Knows the declared streams.

    Attributes:
        times: How long things take, by stream.
    """

    def __init__(self, config: RedisBusConfig | None = None, *, codec: Codec | None = None) -> None:
        self._config = config or RedisBusConfig()
        self._codec = codec or Codec()
        self._link = Link(self._config.url, self._config.reply_limit_s, password_file=self._config.password_file)
        self._name = self._config.name or f"{platform.node() or 'host'}-{os.getpid()}-{next(_SERIAL)}"
        self._stop = asyncio.Event()
        self._members: dict[tuple[str, str], dict[int, Member]] = {}
        self._counts: dict[tuple[str, str], GroupCounts] = {}
        self.times = BusTimes()
        self._longest: dict[str, int] = {}
        self._passing: list[tuple[str, str]] = []
        self._ended = asyncio.Event()
        self._ended.set()

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def connect(self) -> None:
        """Return once Redis has answered.

        Raises:
            BusUnavailable: If it does not.
            ConfigError: If it does not let this user in.
        """
        self._check_open()
        await self._link.ping()

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        """Append a message to a stream, and try again with the same id where the answer is lost.

        Raises:
            BusUnavailable: If the bus is closed, or Redis did not answer for ``publish_limit_s``; the message may be held
                nevertheless.
            ContractError: If the message does not keep the topic's contract.
        """
        self._check_open()
        envelope = self._codec.seal(stream, message, run_id=run_id, message_id=message_id)
        await self._sent(stream, self.append(stream, envelope))
        return envelope.id

    async def publish_many(
        self, stream: str, messages: Sequence[Message], *, run_id: str | None = None
    ) -> list[MessageId]:
        """Append messages to a stream, in order, up to 256 in one command; where one breaks the contract, none is published.

        Raises:
            BusUnavailable: As for ``publish``; messages before the one that failed may be held.
            ContractError: If a message does not keep the topic's contract.
        """
        self._check_open()
        envelopes = self._codec.seal_all(stream, messages, run_id=run_id)
        for start in range(0, len(envelopes), _MOST_AT_ONCE):
            part = envelopes[start : start + _MOST_AT_ONCE]
            await self._sent(stream, append_many(key_of(stream), self._longest_of(stream), part))
        return [envelope.id for envelope in envelopes]

    async def _sent(self, stream: str, command: Command) -> None:
        """Send a command again where its answer is lost; what it appends has the same ids then."""
        began = time.perf_counter()
        ends_at = asyncio.get_running_loop().time() + self._config.publish_limit_s
        for attempt in itertools.count():
            try:
                await self._link.ask(*command)
                self.times[stream].publish.observe(time.perf_counter() - began)
                break
            except BusUnavailable:
                pause = random.uniform(0.5, 1.0) * min(0.05 * 2**attempt, 1.0)
                if self._stop.is_set() or asyncio.get_running_loop().time() + pause > ends_at:
                    raise
                await asyncio.sleep(pause)

    def append(self, stream: str, envelope: Envelope) -> Command:
        """Return the command that appends an envelope to a stream and trims what is too old."""
        return append_one(key_of(stream), self._longest_of(stream), envelope)

    def _longest_of(self, stream: str) -> int:
        topic, longest = self._codec.topic(stream), self._longest.get(stream, self._config.max_length)
        return longest if topic is None else min(longest, topic.max_length)

    async def subscribe(
        self,
        stream: str,
        group: str,
        handler: DeliveryHandler,
        *,
        start_from: str = ">",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        """Hand messages to ``handler``, ``concurrency`` at once, until the bus is closed.

        An outage of Redis does not end a subscription. A group that vanished is made again at the oldest message held, so
        that messages may come again, but none is passed over.

        Raises:
            BusUnavailable: If the bus is closed already.
            ConfigError: If ``start_from`` is neither ``">"`` nor ``"0"``, or Redis refuses this user.
        """
        self._check_open()
        if start_from not in (">", "0"):
            raise ConfigError(
                f"start_from={start_from!r} cannot be used", todo='use ">" for new messages, "0" for all held'
            )
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(self._config.concurrency):
                    lanes.create_task(self._lane(stream, group, handler, start_from, acknowledge))
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors

    async def _lane(
        self, stream: str, group: str, handler: DeliveryHandler, start_from: str, acknowledge: Acknowledge
    ) -> None:
        members = self._members.setdefault((stream, group), {})
        slot = next(n for n in itertools.count() if n not in members)
        counts = self._counts.setdefault((stream, group), GroupCounts())
        name, begins = f"{self._name}.{slot}", "$" if start_from == ">" else "0"
        place = Place(stream, key_of(stream), group, name, begins, not slot, acknowledge)
        members[slot] = Member(self, self._link, self._codec, self._config, place, handler, self._stop, counts)
        self._ended.clear()
        try:
            await members[slot].run()
        finally:
            del members[slot]
            if not any(self._members.values()):
                self._ended.set()

    async def create_topic(self, stream: str, *, max_length: int | None = None) -> None:
        """Make an empty stream; nothing is published to it.

        Args:
            stream: Its name.
            max_length: Messages that it keeps (about) of what this bus publishes; else as for any other stream.
        """
        if max_length is not None:
            self._longest[stream] = max_length
        # Only a group makes a stream without a message; the stream stays when the group is gone.
        key, maker = key_of(stream), f"oona-{uuid4().hex[:12]}"
        made = ("XGROUP", "CREATE", key, maker, "$", "MKSTREAM")
        await self._link.ask_all([made, ("XGROUP", "DESTROY", key, maker)], at_once=True)

    def end_with_it(self, stream: str, group: str) -> None:
        """Destroy a group when this bus is closed; for one that nobody will be a member of again, such as that of a run."""
        self._passing.append((stream, group))

    async def streams(self) -> list[str]:
        """Return the names of all streams that Redis holds, sorted."""
        return sorted(stream_of(key.decode()) for key in await self._link.keys("stream"))

    def counts(self) -> dict[tuple[str, str], GroupCounts]:
        """Return what the members of this process have done and missed, by stream and group."""
        return {place: counts.copy() for place, counts in self._counts.items()}

    def tallies(self) -> list[Tally]:
        """Return the same as metrics have it; what waits for a group is looked at from outside (`FiguresWatch`)."""
        counts = list(self._counts.items())
        return [Tally(stream, group, c.redelivered, c.dead, c.lost) for (stream, group), c in counts]

    def waiting(self) -> list[Waiting]:
        """Return nothing: a process sees its own part of a group only."""
        return []

    async def close(self) -> None:
        """Take no more messages, let each handler finish the one in hand, acknowledge, and end every subscription.

        A handler that goes on for longer than ``close_limit_s`` is cancelled; its message counts as not acknowledged, and
        other members may take it at once.

        Raises:
            BusUnavailable: If a handler goes on although it was cancelled.
        """
        ends_at = asyncio.get_running_loop().time() + self._config.close_limit_s
        if not self._stop.is_set():
            self._stop.set()
            for member in [member for members in self._members.values() for member in members.values()]:
                member.cut_at(ends_at)
        try:
            slowest = max(self._config.block_s, 0.0) + 2 * self._config.reply_limit_s
            async with asyncio.timeout_at(ends_at + slowest + _CANCEL_LIMIT_S):
                await self._ended.wait()
            await self._destroy_passing()
        except TimeoutError as error:
            raise BusUnavailable(
                "the bus cannot be closed",
                why="a handler goes on although it was cancelled",
                todo="mend that handler",
            ) from error
        finally:
            await self._link.close()

    async def _destroy_passing(self) -> None:
        passing, self._passing = self._passing, []
        for stream, group in passing:
            try:
                await self._link.ask("XGROUP", "DESTROY", key_of(stream), group)
            except EsperError as error:  # It stays, as that of a process that was killed does.
                log.warning("group_not_destroyed", stream=stream, group=group, why=str(error))

    def _check_open(self) -> None:
        if self._stop.is_set():
            raise BusUnavailable("the bus is closed", todo="open a new one")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
