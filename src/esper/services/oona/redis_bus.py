"""The bus between processes, on Redis Streams (Redis 7.0 or newer, or Valkey)."""

import asyncio
import itertools
import os
import platform
from collections.abc import Sequence
from typing import Self
from uuid import uuid4

from esper.contracts.ids import MessageId
from esper.contracts.topics import Message
from esper.errors import BusUnavailable, ConfigError, EsperError
from esper.ports import Acknowledge, BusHealth, DeliveryHandler
from esper.runtime.closing import Closing
from esper.runtime.waits import is_set_within
from esper.services.oona.codec import Codec
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_entry import GroupCounts
from esper.services.oona.redis_fields import key_of, lost_key_of, seen_key_of, stream_of
from esper.services.oona.redis_health import health_of
from esper.services.oona.redis_link import Link
from esper.services.oona.redis_member import Member
from esper.services.oona.redis_seat import Place
from esper.services.oona.redis_writer import MOST_AT_ONCE, Writer
from esper.telemetry.bus_metrics import Tally, Waiting
from esper.telemetry.logs import get_logger

log = get_logger("oona.redis")

_CANCEL_LIMIT_S = 1.0
"""How long a cancelled handler may take to end."""

_SERIAL = itertools.count()


class RedisBus(Closing):
    """Implements `esper.ports.MessageBus` on Redis Streams.

    Delivery is at least once: a message is acknowledged after its handler has returned, in batches; one that a dead member
    held goes to another after ``claim_idle_s``; a message whose tries are used up is moved to the dead letters in the
    transaction of its acknowledgement. A handler that must act once wraps itself in `esper.services.oona.once.once`, or
    keeps the message's id in its own transaction: a publish whose answer was lost is sent again with the same id.
    Where a subscription acknowledges on receipt, what its member has read and not begun is lost with it, too.

    A stream keeps its newest ``max_length`` messages, about. A writer does not wait for a slow group: it counts what it trims
    before a group saw it, whether that has a member or not, in ``losses``, in Redis and in the log.

    Args:
        config: Address and limits.
        codec: Knows the declared streams.

    Attributes:
        config: Address and limits.
        times: How long things take, by stream.
        losses: Messages by stream and group that the group lost, as far as this process trimmed them or found them gone.
    """

    def __init__(self, config: RedisBusConfig | None = None, *, codec: Codec | None = None) -> None:
        self.config = config or RedisBusConfig()
        self._codec = codec or Codec()
        self._link = Link(self.config.url, self.config.reply_limit_s, password_file=self.config.password_file)
        self._name = self.config.name or f"{platform.node() or 'host'}-{os.getpid()}-{next(_SERIAL)}"
        self._stop = asyncio.Event()
        self._members: dict[tuple[str, str], dict[int, Member]] = {}
        self._counts: dict[tuple[str, str], GroupCounts] = {}
        self._writer = Writer(self._link, self._codec, self.config, self._stop)
        self.times, self.losses = self._writer.times, self._writer.losses
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
        await self._writer.send(stream, [envelope])
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
        for start in range(0, len(envelopes), MOST_AT_ONCE):
            await self._writer.send(stream, envelopes[start : start + MOST_AT_ONCE])
        return [envelope.id for envelope in envelopes]

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
                for _ in range(self.config.concurrency):
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
        members[slot] = Member(self._writer, self._link, self._codec, self.config, place, handler, self._stop, counts)
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
            self._writer.longest[stream] = max_length
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
        return [self._tally(*place) for place in dict.fromkeys([*self._counts, *self.losses])]

    def _tally(self, stream: str, group: str) -> Tally:
        counts = self._counts.get((stream, group), GroupCounts())
        return Tally(stream, group, counts.redelivered, counts.dead, self.losses.get((stream, group), 0))

    def waiting(self) -> list[Waiting]:
        """Return nothing: a process sees its own part of a group only."""
        return []

    async def health(self) -> BusHealth:
        """Tell whether Redis takes messages, on every server that has a part of them.

        Raises:
            BusUnavailable: If the bus is closed.
            ConfigError: If this user may not ask.
        """
        self._check_open()
        return await health_of(self._link)

    async def close(self) -> None:
        """Take no more messages, let each handler finish the one in hand, acknowledge, and end every subscription.

        A handler that goes on for longer than ``close_limit_s`` is cancelled; its message counts as not acknowledged, and
        other members may take it at once.

        Raises:
            BusUnavailable: If a handler goes on although it was cancelled.
        """
        ends_at = asyncio.get_running_loop().time() + self.config.close_limit_s
        if not self._stop.is_set():
            self._stop.set()
            for member in [member for members in self._members.values() for member in members.values()]:
                member.cut_at(ends_at)
        try:
            await self._end_members(ends_at)
            await self._destroy_passing()
        finally:
            await self._link.close()

    async def _end_members(self, ends_at: float) -> None:
        """Wait for the handlers; those that are cancelled have their time from then on, however long the loop stood still."""
        slowest_s = max(self.config.block_s, 0.0) + 2 * self.config.reply_limit_s
        for limit_s in (max(ends_at - asyncio.get_running_loop().time(), 0), slowest_s + _CANCEL_LIMIT_S):
            if await is_set_within(self._ended, limit_s):
                return
        raise BusUnavailable(
            "the bus cannot be closed",
            why="a handler goes on although it was cancelled",
            todo="mend that handler",
        )

    async def _destroy_passing(self) -> None:
        passing, self._passing = self._passing, []
        for stream, group in passing:
            try:
                key = key_of(stream)
                forgotten = [("HDEL", beside, group) for beside in (lost_key_of(key), seen_key_of(key))]
                await self._link.ask_all([("XGROUP", "DESTROY", key, group), *forgotten])
            except EsperError as error:  # It stays, as that of a process that was killed does.
                log.warning("group_not_destroyed", stream=stream, group=group, why=str(error))

    def _check_open(self) -> None:
        if self._stop.is_set():
            raise BusUnavailable("the bus is closed", todo="open a new one")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
