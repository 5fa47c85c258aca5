"""The bus of one process: one event loop, no server; what it holds survives the process where it has a journal."""

import asyncio
import time
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from esper.contracts.envelope import Envelope
from esper.contracts.ids import MessageId
from esper.contracts.topics import Message
from esper.errors import BusUnavailable, ConfigError
from esper.ports import Acknowledge, BusHealth, DeliveryHandler
from esper.runtime.closing import Closing
from esper.runtime.waits import Bell
from esper.services.oona.codec import Codec
from esper.services.oona.group_commit import GroupCommit
from esper.services.oona.journal import Journal
from esper.services.oona.memory_counts import StreamCounts, counted
from esper.services.oona.memory_member import Member, Retrying, Shared
from esper.services.oona.memory_stream import Stream, Streams
from esper.telemetry.bus_metrics import BusTimes, Tally, Waiting

_CANCEL_LIMIT_S = 1.0
"""How long a cancelled handler may take to end."""

_TURN = 256
"""Messages that are published before everybody else in the event loop has a turn."""


class MemoryBusConfig(BaseModel):
    """Limits of the in-process bus.

    Attributes:
        max_length: Messages kept per stream, where the topic does not allow fewer.
        max_tries: How often a message is handed out before it goes to the dead letters.
        retry_delay_s: Pause before the second try; it doubles with every further one.
        publish_limit_s: How long a writer waits for room in a full stream.
        close_limit_s: How long a handler may go on after the bus was closed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_length: int = Field(default=1_000, ge=1)
    max_tries: int = Field(default=3, ge=1)
    retry_delay_s: float = Field(default=0.05, ge=0)
    publish_limit_s: float = Field(default=5.0, gt=0)
    close_limit_s: float = Field(default=5.0, ge=0)


class MemoryBus(Closing):
    """Implements `esper.ports.MessageBus` within one event loop.

    Messages travel in the same envelope and encoding as on any other bus, so that nobody shares an object by accident.
    A member of a group handles one message at a time, and tries a failing one again before the next: order is kept.
    A full stream makes its writer wait, unless its topic is lossy: then the oldest message is dropped and counted.

    With a journal, ``publish`` returns when the message is on its way to the disk and the death of the process cannot take it
    back; a reader's acknowledgement is kept with one of the next commits. After a restart a group is first handed what it had
    been handed and had not acknowledged, with the same ids, then the rest.

    Args:
        config: Limits.
        codec: Knows the declared streams.
        journal: Keeps messages and acknowledgements of the durable streams; the bus closes it.

    Attributes:
        times: How long things take, by stream. A message that nothing had to wait for counts as published at once.
    """

    def __init__(
        self, config: MemoryBusConfig | None = None, *, codec: Codec | None = None, journal: Journal | None = None
    ) -> None:
        self._config = config or MemoryBusConfig()
        self._codec = codec or Codec()
        self._streams = Streams(self._codec, self._config.max_length)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._members: set[Member] = set()
        self._left = Bell()
        self._stop = asyncio.Event()
        self._since_turn = 0
        self.times = BusTimes()
        self._commits = None if journal is None else GroupCommit(journal, self.times)
        for name, state in journal.load().items() if journal is not None else ():
            held = self._streams[name]
            if not held.durable:
                continue
            held.restore(state.next_seq, state.messages)
            for group in state.groups:
                held.rejoin(group.name, group.next_seq, group.pending)

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        """Append a message to a stream; a full stream that is not lossy makes the caller wait.

        Raises:
            BusUnavailable: If the bus is closed, the stream stayed full for ``publish_limit_s``, or the journal cannot be
                written.
            ContractError: If the message does not keep the topic's contract.
        """
        envelope = self._codec.seal(stream, message, run_id=run_id, message_id=message_id)
        await self._append(stream, [envelope])
        return envelope.id

    async def publish_many(
        self, stream: str, messages: Sequence[Message], *, run_id: str | None = None
    ) -> list[MessageId]:
        """Append messages to a stream, in order; where one breaks the contract, none is published.

        Raises:
            BusUnavailable: As for ``publish``; messages before the one that failed may have been published.
            ContractError: If a message does not keep the topic's contract.
        """
        envelopes = self._codec.seal_all(stream, messages, run_id=run_id)
        await self._append(stream, envelopes)
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
        """Hand messages to ``handler`` one after the other until the bus is closed.

        Raises:
            BusUnavailable: If the bus is closed already.
            ConfigError: If ``start_from`` is neither ``">"`` nor ``"0"``.
        """
        self._check_usable()
        if start_from not in (">", "0"):
            raise ConfigError(
                f"start_from={start_from!r} cannot be used", todo='use ">" for new messages, "0" for all held'
            )
        held = self._streams[stream]
        is_new = group not in held.groups
        readers = held.join(group, start_from)
        commits = self._commits if held.durable else None
        if is_new and commits is not None:
            commits.moved(held, readers)
            await commits.flush()
        retrying = Retrying(self._config.max_tries, self._config.retry_delay_s)
        shared = Shared(self._streams, self._codec, retrying, commits, self._stop, self.times)
        member = Member(shared, held, readers, handler, acknowledge)
        self._members.add(member)
        try:
            await member.run()
        finally:
            self._members.discard(member)
            self._left.ring()

    async def health(self) -> BusHealth:
        """Tell whether messages are taken: always, where there is no journal; else whether that can be written now."""
        self._check_usable()
        began, why, used_bytes = time.perf_counter(), "", None
        try:
            used_bytes = None if self._commits is None else await self._commits.size_bytes()
        except BusUnavailable as error:
            why = str(error)
        return BusHealth(
            usable=not why,
            why=why,
            server="this process" if self._commits is None else "this process, with a journal",
            answered_s=time.perf_counter() - began,
            streams=sum(len(stream) > 0 for stream in self._streams),
            messages=sum(len(stream) for stream in self._streams),
            used_bytes=used_bytes,
        )

    async def close(self) -> None:
        """Take no more messages, let each handler finish the one in hand, and end every subscription.

        A handler that goes on for longer than ``close_limit_s`` is cancelled; its message counts as not acknowledged.

        Raises:
            BusUnavailable: If a handler cannot be cancelled, or the journal cannot be written.
        """
        self._check_loop()
        ends_at = asyncio.get_running_loop().time() + self._config.close_limit_s
        if not self._stop.is_set():
            self._stop.set()
            for member in self._members:
                member.cut_at(ends_at)
            for stream in self._streams:
                stream.news.ring()
                stream.moves.ring()
        try:
            await self._end_members(ends_at)
        finally:
            commits, self._commits = self._commits, None
            if commits is not None:
                await commits.close()

    async def drain(self, *, limit_s: float) -> bool:
        """Wait until every group has handled what was published, but no longer than ``limit_s``; tell whether it has."""
        self._check_loop()
        try:
            async with asyncio.timeout(limit_s):
                while busy := next((stream for stream in self._streams if not stream.is_idle), None):
                    await busy.moves.wait_for(lambda stream=busy: stream.is_idle)  # type: ignore[misc]
        except TimeoutError:
            return False
        return True

    def counts(self) -> dict[str, StreamCounts]:
        """Return what every stream holds, has handed out and has lost."""
        return {stream.name: counted(stream) for stream in self._streams}

    def tallies(self) -> list[Tally]:
        """Return the same as metrics have it."""
        groups = [(stream.name, group) for stream in self._streams for group in list(stream.groups.values())]
        return [Tally(name, group.name, group.redelivered, group.dead, group.lost) for name, group in groups]

    def waiting(self) -> list[Waiting]:
        """Return what waits for each group."""
        groups = [(stream, group) for stream in self._streams for group in list(stream.groups.values())]
        lags = [stream.published - group.next_seq + len(group.returned) for stream, group in groups]
        return [
            Waiting(stream.name, group.name, lag, lag + group.in_hand)
            for (stream, group), lag in zip(groups, lags, strict=True)
        ]

    async def _append(self, stream: str, envelopes: list[Envelope]) -> None:
        """Add messages to a stream, as many at once as it has room for."""
        self._check_usable()
        held, publish = self._streams[stream], self.times[stream].publish
        if self._commits is None and held.room >= len(envelopes):
            publish.instant()
            await self._take(held, envelopes)
            return
        began = time.perf_counter()
        while envelopes and (room := held.room) < len(envelopes):
            if room < 1:
                await self._room(held)
            else:
                await self._take(held, envelopes[:room])
                envelopes = envelopes[room:]
        await self._take(held, envelopes)
        publish.observe(time.perf_counter() - began)

    async def _take(self, held: Stream, envelopes: list[Envelope]) -> None:
        if self._commits is not None and held.durable:
            await self._commits.add(held, envelopes)
            return
        held.extend(envelopes)
        self._since_turn += len(envelopes)
        if self._since_turn >= _TURN:  # readers have one now and then, also where writers never wait
            self._since_turn = 0
            await asyncio.sleep(0)

    async def _room(self, held: Stream) -> None:
        try:
            async with asyncio.timeout(self._config.publish_limit_s):
                await held.moves.wait_for(lambda: held.room > 0 or self._stop.is_set())
        except TimeoutError as error:
            slow = [group.name for group in held.groups.values() if group.next_seq <= held.first_seq]
            raise BusUnavailable(
                f"stream {held.name} is full",
                why=f"{len(held)} messages wait for {', '.join(slow)} since {self._config.publish_limit_s:g} s",
                todo="make its handler faster, or add members to the group",
            ) from error
        self._check_usable()

    async def _end_members(self, ends_at: float) -> None:
        """Wait for the handlers; those that are cancelled have their time from then on, however long the loop stood still."""
        for limit_s in (max(ends_at - asyncio.get_running_loop().time(), 0), _CANCEL_LIMIT_S):
            if await self._left.holds_within(lambda: not self._members, limit_s):
                return
        raise BusUnavailable(
            "the bus cannot be closed",
            why="a handler goes on although it was cancelled",
            todo="mend that handler",
        )

    def _check_usable(self) -> None:
        self._check_loop()
        if self._stop.is_set():
            raise BusUnavailable("the bus is closed", todo="open a new one")

    def _check_loop(self) -> None:
        """Bind the bus to the first loop that uses it."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigError(
                "the in-process bus was used from a second event loop",
                why="it belongs to the loop that used it first",
                todo="hand the call to that loop with asyncio.run_coroutine_threadsafe",
            )
