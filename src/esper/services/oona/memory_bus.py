"""The bus of one process: one event loop, no server; what it holds survives the process where it has a journal."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from esper.contracts.envelope import DeadLetter, Envelope
from esper.contracts.ids import MessageId
from esper.contracts.topics import Message
from esper.errors import BusUnavailable, ConfigError
from esper.ports import Acknowledge, Delivery, DeliveryHandler
from esper.runtime.closing import Closing
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.group_commit import GroupCommit, Settlement
from esper.services.oona.journal import Journal
from esper.services.oona.memory_stream import Entry, Group, Pending, Stream
from esper.telemetry.logs import get_logger
from esper.telemetry.tracing import traced, usable

log = get_logger("oona.memory")

_CANCEL_LIMIT_S = 1.0
"""How long a cancelled handler may take to end."""


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


@dataclass(frozen=True)
class GroupCounts:
    """What one group has done and missed.

    Attributes:
        lag: Messages that wait for it.
        in_hand: Messages with a member now.
        handled: Messages acknowledged.
        redelivered: Tries after the first.
        dead: Messages that went to the dead letters.
        lost: Messages that were trimmed before it saw them.
        dropped: Messages that were acknowledged on receipt and not handled.
    """

    lag: int
    in_hand: int
    handled: int
    redelivered: int
    dead: int
    lost: int
    dropped: int = 0


@dataclass(frozen=True)
class StreamCounts:
    """What one stream holds and has lost."""

    held: int
    published: int
    trimmed: int
    groups: Mapping[str, GroupCounts]


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
        journal: Keeps messages and acknowledgements; the bus closes it.
    """

    def __init__(
        self, config: MemoryBusConfig | None = None, *, codec: Codec | None = None, journal: Journal | None = None
    ) -> None:
        self._config = config or MemoryBusConfig()
        self._codec = codec or Codec()
        self._streams: dict[str, Stream] = {}
        self._changed: asyncio.Condition | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limits: set[asyncio.Timeout] = set()
        self._members = 0
        self._closed = False
        self._commits = None if journal is None else GroupCommit(journal, self._wake)
        for name, state in journal.load().items() if journal is not None else ():
            held = self._stream(name)
            held.restore(state.next_seq, (Entry(seq, envelope) for seq, envelope in state.messages))
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
        sealed = self._codec.seal(stream, message, run_id=run_id, message_id=message_id)
        await self._append(stream, [sealed])
        return MessageId(sealed.id)

    async def publish_many(
        self, stream: str, messages: Sequence[Message], *, run_id: str | None = None
    ) -> list[MessageId]:
        """Append messages to a stream, in order; where one breaks the contract, none is published.

        Raises:
            BusUnavailable: As for ``publish``; messages before the one that failed may have been published.
            ContractError: If a message does not keep the topic's contract.
        """
        envelopes = [self._codec.seal(stream, message, run_id=run_id) for message in messages]
        await self._append(stream, envelopes)
        return [MessageId(envelope.id) for envelope in envelopes]

    async def _append(self, stream: str, envelopes: Sequence[Envelope]) -> None:
        changed = self._bound()
        held = self._stream(stream)
        kept: list[asyncio.Future[None]] = []
        async with changed:
            for envelope in envelopes:
                self._check_open()
                if not held.has_room:
                    changed.notify_all()
                    await self._room(held, stream, changed)
                if self._commits is None:
                    held.append(envelope)
                else:
                    kept.append(self._commits.add(held, envelope))
            changed.notify_all()
        for answer in await asyncio.gather(*kept, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer

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
        changed = self._bound()
        self._check_open()
        if start_from not in (">", "0"):
            raise ConfigError(
                f"start_from={start_from!r} cannot be used", todo='use ">" for new messages, "0" for all held'
            )
        handle = self._handle_received if acknowledge == Acknowledge.ON_RECEIPT else self._handle
        held = self._stream(stream)
        is_new = group not in held.groups
        readers = held.join(group, start_from)
        if is_new and self._commits is not None:
            self._commits.moved(held, readers)
            await self._commits.flush()
        self._members += 1
        try:
            while (pending := await self._next(held, readers, changed)) is not None:
                await handle(stream, readers, pending, handler)
        finally:
            self._members -= 1
            await self._wake()

    async def close(self) -> None:
        """Take no more messages, let each handler finish the one in hand, and end every subscription.

        A handler that goes on for longer than ``close_limit_s`` is cancelled; its message counts as not acknowledged.

        Raises:
            BusUnavailable: If a handler cannot be cancelled, or the journal cannot be written.
        """
        self._closed = True
        try:
            await self._end_members(self._bound())
        finally:
            commits, self._commits = self._commits, None
            if commits is not None:
                await commits.close()

    async def _end_members(self, changed: asyncio.Condition) -> None:
        ends_at = asyncio.get_running_loop().time() + self._config.close_limit_s
        for limit in self._limits:
            limit.reschedule(ends_at)
        async with changed:
            changed.notify_all()
            try:
                async with asyncio.timeout_at(ends_at + _CANCEL_LIMIT_S):
                    await changed.wait_for(lambda: self._members == 0)
            except TimeoutError as error:
                raise BusUnavailable(
                    "the bus cannot be closed",
                    why="a handler goes on although it was cancelled",
                    todo="mend that handler",
                ) from error

    async def drain(self, *, limit_s: float) -> bool:
        """Wait until every group has handled what was published, but no longer than ``limit_s``; tell whether it has."""
        changed = self._bound()
        try:
            async with asyncio.timeout(limit_s), changed:
                await changed.wait_for(self._is_idle)
        except TimeoutError:
            return False
        return True

    def _is_idle(self) -> bool:
        groups = [group for stream in self.counts().values() for group in stream.groups.values()]
        return not any(group.lag or group.in_hand for group in groups)

    def counts(self) -> dict[str, StreamCounts]:
        """Return what every stream holds, has handed out and has lost."""
        return {name: _counted(stream) for name, stream in self._streams.items()}

    def _bound(self) -> asyncio.Condition:
        """Return the one condition that all waits share, bound to the first loop that used the bus."""
        loop = asyncio.get_running_loop()
        if self._changed is None:
            self._changed, self._loop = asyncio.Condition(), loop
        if self._loop is not loop:
            raise ConfigError(
                "the in-process bus was used from a second event loop",
                why="it belongs to the loop that used it first",
                todo="hand the call to that loop with asyncio.run_coroutine_threadsafe",
            )
        return self._changed

    def _check_open(self) -> None:
        if self._closed:
            raise BusUnavailable("the bus is closed", todo="open a new one")

    def _stream(self, name: str) -> Stream:
        if name not in self._streams:
            topic = self._codec.topic(name)
            longest = min(topic.max_length, self._config.max_length) if topic else self._config.max_length
            lossy = topic.lossy if topic else name.endswith(DEAD_SUFFIX)
            self._streams[name] = Stream(name, longest, lossy=lossy)
        return self._streams[name]

    async def _room(self, held: Stream, name: str, changed: asyncio.Condition) -> None:
        try:
            async with asyncio.timeout(self._config.publish_limit_s):
                await changed.wait_for(lambda: held.has_room or self._closed)
        except TimeoutError as error:
            slow = [group.name for group in held.groups.values() if group.next_seq <= held.first_seq]
            raise BusUnavailable(
                f"stream {name} is full",
                why=f"{len(held)} messages wait for {', '.join(slow)} since {self._config.publish_limit_s:g} s",
                todo="make its handler faster, or add members to the group",
            ) from error
        self._check_open()

    async def _next(self, held: Stream, group: Group, changed: asyncio.Condition) -> Pending | None:
        """Return the group's next message, or None once the bus is closed."""
        async with changed:
            while not self._closed:
                if (pending := held.take(group)) is not None:
                    if self._commits is not None:
                        self._commits.moved(held, group)
                    changed.notify_all()
                    return pending
                await changed.wait()
        return None

    async def _handle(self, stream: str, group: Group, pending: Pending, handler: DeliveryHandler) -> None:
        """Hand one message out until it is acknowledged or dead; otherwise the group gets it back."""
        settled = False
        try:
            async with asyncio.timeout(None) as limit:
                self._limits.add(limit)
                settled = await self._settled(stream, group, pending, handler)
        except TimeoutError:
            # Only close() sets the limit: the handler was cut off, and its message stays unacknowledged.
            pending.reason = "the bus was closed before the handler returned"
        finally:
            self._limits.discard(limit)
            if not (settled or pending.buried):
                self._streams[stream].give_back(group, pending)
            elif settled and not pending.buried:
                self._settle(self._streams[stream], group, pending)
            await self._wake()

    async def _handle_received(self, stream: str, group: Group, pending: Pending, handler: DeliveryHandler) -> None:
        """Acknowledge one message, then hand it out once; whatever becomes of it, it does not come again."""
        group.in_hand += 1  # until the handler has returned; the message itself is settled before
        handled = False
        try:
            async with asyncio.timeout(None) as limit:
                self._limits.add(limit)
                self._settle(self._streams[stream], group, pending)
                if await self._kept():
                    pending.tries += 1
                    await self._call(stream, pending, handler)
                    handled = True
        except Exception as error:  # Whatever a handler raises; a message that may be lost has no second try.
            log.warning("message_dropped", stream=stream, group=group.name, why=f"{type(error).__name__}: {error}")
        finally:
            self._limits.discard(limit)
            group.in_hand -= 1
            group.handled += handled
            group.dropped += not handled
            await self._wake()

    async def _kept(self) -> bool:
        """Wait until the journal holds the acknowledgements so far; tell whether it does before the bus is closed."""
        while self._commits is not None:
            try:
                await self._commits.flush()
                break
            except BusUnavailable:
                await self._pause(max(self._config.retry_delay_s, 0.01))
                if self._closed:
                    return False
        return True

    def _settle(self, held: Stream, group: Group, pending: Pending) -> None:
        """Acknowledge a message; where there is a journal, the acknowledgement counts once it is kept there."""
        if self._commits is None:
            held.settle(group, pending.entry.seq)
        else:
            self._commits.settle(held, group, pending.entry.seq)

    async def _settled(self, stream: str, group: Group, pending: Pending, handler: DeliveryHandler) -> bool:
        while pending.tries < self._config.max_tries:
            if pending.tries:
                await self._pause(self._config.retry_delay_s * 2 ** (pending.tries - 1))
                group.redelivered += 1
            if self._closed and pending.tries:
                return False
            pending.tries += 1
            try:
                await self._call(stream, pending, handler)
            except Exception as error:  # Whatever a handler raises is a failed try; its reason goes with the message.
                pending.reason = f"{type(error).__name__}: {error}"
            else:
                group.handled += 1
                return True
        await self._bury(stream, group, pending)
        return True

    async def _call(self, stream: str, pending: Pending, handler: DeliveryHandler) -> None:
        with traced(usable(pending.entry.envelope.traceparent)):
            await handler(self._delivery(stream, pending))

    def _delivery(self, stream: str, pending: Pending) -> Delivery:
        envelope = pending.entry.envelope
        return Delivery(
            id=MessageId(envelope.id),
            stream=stream,
            body=self._codec.open(envelope),
            run_id=envelope.run_id,
            redelivered=pending.tries > 1,
        )

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the bus is closed."""
        changed = self._bound()
        async with changed:
            try:
                async with asyncio.timeout(seconds):
                    await changed.wait_for(lambda: self._closed)
            except TimeoutError:
                return

    async def _bury(self, stream: str, group: Group, pending: Pending) -> None:
        """Move a message to the dead letters; those of dead letters are counted and dropped."""
        group.dead += 1
        if stream.endswith(DEAD_SUFFIX):
            return
        letter = DeadLetter(
            stream=stream,
            group=group.name,
            tries=pending.tries,
            reason=pending.reason,
            envelope=pending.entry.envelope,
        )
        dead = self._stream(stream + DEAD_SUFFIX)
        sealed = self._codec.seal(dead.name, letter, run_id=pending.entry.envelope.run_id)
        if self._commits is None:
            dead.append(sealed)
            return
        settles = Settlement(self._streams[stream], group, pending.entry.seq)
        kept = self._commits.add(dead, sealed, settles=settles)
        try:
            await asyncio.shield(kept)
        finally:
            # A reader that is cancelled meanwhile must know whether the letter took the message's place.
            await asyncio.wait([kept])
            pending.buried = kept.exception() is None

    async def _wake(self) -> None:
        changed = self._bound()
        async with changed:
            changed.notify_all()


def _counted(stream: Stream) -> StreamCounts:
    groups = {
        name: GroupCounts(
            lag=stream.published - group.next_seq + len(group.returned),
            in_hand=group.in_hand,
            handled=group.handled,
            redelivered=group.redelivered,
            dead=group.dead,
            lost=group.lost,
            dropped=group.dropped,
        )
        for name, group in stream.groups.items()
    }
    return StreamCounts(held=len(stream), published=stream.published, trimmed=stream.trimmed, groups=groups)
