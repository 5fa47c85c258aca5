"""One member of a group on the in-process bus: it takes, hands out, and acknowledges."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from esper.contracts.envelope import DeadLetter
from esper.errors import BusUnavailable
from esper.ports import Acknowledge, Delivery, DeliveryHandler
from esper.runtime.waits import is_set_within
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.group_commit import GroupCommit
from esper.services.oona.handing import handed
from esper.services.oona.memory_stream import Group, Pending, Stream, Streams
from esper.telemetry.bus_metrics import BusTimes, since
from esper.telemetry.logs import get_logger
from esper.telemetry.tracing import traceparent

log = get_logger("oona.memory")

_TURN_S = 0.001
"""How long a handler that never waits goes on before everybody else in the event loop has a turn."""
_LOOK_EVERY = 8
"""Messages between looks at the clock."""


@dataclass(frozen=True)
class Retrying:
    """How often, and after which pauses, a message is handed out.

    Attributes:
        max_tries: How often it is handed out before it goes to the dead letters.
        delay_s: Pause before the second try; it doubles with every further one.
    """

    max_tries: int
    delay_s: float


@dataclass(frozen=True)
class Shared:
    """What the members of one bus have in common.

    Attributes:
        streams: Where dead letters go.
        codec: Opens envelopes.
        retrying: What becomes of a message that fails.
        commits: Keeps acknowledgements, where there is a journal.
        stop: Ends every member.
        times: How long things take, by stream.
    """

    streams: Streams
    codec: Codec
    retrying: Retrying
    commits: GroupCommit | None
    stop: asyncio.Event
    times: BusTimes


class Member:
    """Handles one message at a time, and tries a failing one again before the next, so that order is kept.

    Args:
        shared: What all members have.
        stream: What it reads.
        group: Whose member it is.
        handler: Is handed the messages.
        acknowledge: When a message counts as acknowledged.
    """

    def __init__(
        self, shared: Shared, stream: Stream, group: Group, handler: DeliveryHandler, acknowledge: Acknowledge
    ) -> None:
        self._streams, self._codec, self._retrying = shared.streams, shared.codec, shared.retrying
        self._commits, self._stop = shared.commits, shared.stop
        self._waits = shared.times[stream.name].consume
        self._stream, self._group, self._handler = stream, group, handler
        self._on_receipt = acknowledge == Acknowledge.ON_RECEIPT
        self._limit = asyncio.timeout(None)

    def cut_at(self, when: float) -> None:
        """Cancel the handler in hand at a moment of the loop's clock."""
        self._limit.reschedule(when)

    async def run(self) -> None:
        """Work until the bus is closed; a handler that is cut off leaves its message unacknowledged."""
        try:
            async with self._limit:
                await self._work()
        except TimeoutError:  # only close() sets the limit
            return

    async def _work(self) -> None:
        stream, group = self._stream, self._group
        while not self._stop.is_set():
            await stream.news.wait_for(lambda: stream.has_for(group) or self._stop.is_set())
            if await self._turn():
                await asyncio.sleep(0)

    async def _turn(self) -> bool:
        """Hand messages out for a millisecond at most, and tell whether there are more.

        The first try at a message stands here: most have no other, and a call for each would cost as much as all the rest.
        """
        stream, group, commits, handler = self._stream, self._group, self._commits, self._handler
        take, settle, opened, name = stream.take, group.pending.discard, self._codec.open, stream.name
        stopped, now, trace = self._stop.is_set, asyncio.get_running_loop().time, traceparent()
        taken, ends_at = 0, now() + _TURN_S
        while not stopped() and (pending := take(group)) is not None:
            envelope = pending.envelope
            if not taken:
                self._waits.observe(since(envelope.sent_at))
            if commits is not None:
                commits.moved(stream, group)
            if self._on_receipt:
                await self._handle_received(pending)
            elif pending.tries:
                await self._handle_until_settled(pending)
            else:
                pending.tries = 1
                try:
                    delivery = Delivery(envelope.id, name, opened(envelope), envelope.run_id, False)
                    if envelope.traceparent == trace:
                        await handler(delivery)
                    else:
                        await handed(handler, delivery, envelope.traceparent)
                except Exception as error:  # Whatever it raises is a failed try; its reason goes with the message.
                    pending.note(error)
                    await self._handle_until_settled(pending)
                except BaseException:
                    stream.give_back(group, pending)
                    raise
                else:
                    group.handled += 1
                    if commits is None:
                        settle(pending.seq)
                    else:
                        commits.acknowledge(stream, group, pending.seq)
            taken += 1
            if taken % _LOOK_EVERY == 0 and now() > ends_at:
                break
        stream.moves.ring()  # each message that is taken rings as well, so that nobody waits for the end of a slow one
        return taken > 0 and stream.has_for(group)

    async def _handle_until_settled(self, pending: Pending) -> None:
        """Hand one message out until it is acknowledged or dead; otherwise the group gets it back."""
        try:
            while not pending.tries or await self._may_try_again(pending):
                pending.tries += 1
                try:
                    await self._call(pending)
                except Exception as error:  # As for the first try.
                    pending.note(error)
                else:
                    self._group.handled += 1
                    self._settle(pending)
                    return
        finally:
            if not pending.settled:
                self._stream.give_back(self._group, pending)

    async def _handle_received(self, pending: Pending) -> None:
        """Acknowledge one message, then hand it out once; whatever becomes of it, it does not come again."""
        if pending.tries >= self._retrying.max_tries:  # a member that acknowledges later has had its last try
            await self._handle_until_settled(pending)
            return
        group, handled, why = self._group, False, "the bus was closed"
        group.received += 1
        self._settle(pending)
        try:
            if await self._has_kept():
                pending.tries += 1
                await self._call(pending)
                handled = True
        except Exception as error:  # Whatever a handler raises; a message that may be lost has no second try.
            why = f"{type(error).__name__}: {error}"
        finally:
            group.received -= 1
            group.handled += handled
            group.dropped += not handled
            self._stream.moves.ring()
            if not handled:
                log.warning("message_dropped", stream=self._stream.name, group=group.name, why=why)

    def _call(self, pending: Pending) -> Awaitable[None]:
        envelope = pending.envelope
        body = self._codec.open(envelope)
        delivery = Delivery(envelope.id, self._stream.name, body, envelope.run_id, pending.tries > 1)
        return handed(self._handler, delivery, envelope.traceparent)

    async def _may_try_again(self, pending: Pending) -> bool:
        """Pause before another try, or bury the message after the last one."""
        if pending.tries >= self._retrying.max_tries:
            await self._bury(pending)
            return False
        await is_set_within(self._stop, self._retrying.delay_s * 2 ** (pending.tries - 1))
        if self._stop.is_set():
            return False
        self._group.redelivered += 1
        return True

    async def _has_kept(self) -> bool:
        """Wait until the journal holds the acknowledgements so far; tell whether it does before the bus is closed."""
        while self._commits is not None:
            try:
                await self._commits.flush()
                break
            except BusUnavailable:
                if await is_set_within(self._stop, max(self._retrying.delay_s, 0.01)):
                    return False
        return True

    async def _bury(self, pending: Pending) -> None:
        """Move a message to the dead letters; those of dead letters are counted and dropped."""
        self._group.dead += 1
        if self._stream.name.endswith(DEAD_SUFFIX):
            self._settle(pending)
            return
        letter = DeadLetter(
            stream=self._stream.name,
            group=self._group.name,
            tries=pending.tries,
            reason=pending.reason,
            envelope=pending.envelope,
            history=pending.history,
        )
        grave = self._streams[self._stream.name + DEAD_SUFFIX]
        sealed = self._codec.seal(grave.name, letter, run_id=pending.envelope.run_id)
        if self._commits is None:
            grave.extend([sealed])
            self._settle(pending)
            return
        kept = self._commits.bury(grave, sealed, self._stream, self._group, pending.seq)
        try:
            await asyncio.shield(kept)
        finally:
            # A reader that is cancelled meanwhile must know whether the letter took the message's place.
            await asyncio.wait([kept])
            pending.settled = kept.exception() is None

    def _settle(self, pending: Pending) -> None:
        """Be done with a message; where there is a journal, that counts once it is kept there."""
        pending.settled = True
        if self._commits is None:
            self._stream.settle(self._group, pending.seq)
        else:
            self._commits.acknowledge(self._stream, self._group, pending.seq)
