"""One member of a consumer group on Redis Streams: it reads, hands out, acknowledges, and takes over from the dead."""

import asyncio
import random
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import msgspec

from esper.contracts.envelope import Attempt, DeadLetter, Envelope
from esper.contracts.topics import Message
from esper.errors import BusUnavailable, ContractError, EsperError
from esper.ports import Acknowledge, Delivery, DeliveryHandler
from esper.runtime.waits import is_set_within
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.handing import handed, noted
from esper.services.oona.redis_fields import as_found, from_fields
from esper.services.oona.redis_link import Command, GroupGone, GroupThere, Link
from esper.services.oona.redis_trim import TrimWatch
from esper.telemetry.bus_metrics import since
from esper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from esper.services.oona.redis_bus import RedisBus, RedisBusConfig

log = get_logger("oona.redis")

_GIVE_BACK_LIMIT_S = 1.0
_LONGEST_PAUSE_S = 2.0
_LATE_S = 120.0
"""For how long a command that was given up may still reach Redis: about what TCP goes on trying for a closed connection."""
_ACK_WITHIN_S = 0.2
"""How long a handled message waits for its acknowledgement while the next one is worked on."""

HOLD = """
local kept = {}
for n = 4, #ARGV, 2 do
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[n], ARGV[n], 1)
  if held[1] and held[1][2] == ARGV[2] then
    if redis.call('XRANGE', KEYS[1], ARGV[n], ARGV[n])[1] then
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[n], 'IDLE', ARGV[3], 'RETRYCOUNT', ARGV[n + 1], 'JUSTID')
    end
    kept[#kept + 1] = ARGV[n]
  end
end
return kept
"""
"""Sets idle time and tries of those messages that are still this member's, and returns them: a plain XCLAIM would take back
what another has taken over. One that was trimmed stays as it is: to claim it would take it out of the pending list, so that it
could neither be tried again nor be counted as lost."""


@dataclass
class GroupCounts:
    """What the members of one process have done for a group.

    Attributes:
        handled: Messages acknowledged.
        redelivered: Tries after the first.
        dead: Messages that went to the dead letters.
        lost: Messages that were trimmed before the group saw them, or while they were pending.
        claimed: Messages taken over from members that showed no sign of life.
        leases_lost: Leases that ran out although the handler still ran.
        regrouped: Times that the group had vanished and was made again.
        outages: Times that Redis did not answer.
        dropped: Messages that were acknowledged on receipt and not handled.
    """

    handled: int = 0
    redelivered: int = 0
    dead: int = 0
    lost: int = 0
    claimed: int = 0
    leases_lost: int = 0
    regrouped: int = 0
    outages: int = 0
    dropped: int = 0

    def copy(self) -> "GroupCounts":
        """Return the same numbers, which stay."""
        return replace(self)


@dataclass(frozen=True)
class Place:
    """Where a member stands.

    Attributes:
        stream: Name of the stream.
        key: Its key.
        group: Name of the group.
        name: The member's own name in it.
        begins: Where the group begins if it is new, as Redis writes it.
        watches: Whether this member is the one of its process that looks for trimmed messages.
        acknowledge: When a message counts as acknowledged.
    """

    stream: str
    key: str
    group: str
    name: str
    begins: str
    watches: bool
    acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING


class Entry:
    """A message in this member's hands.

    Attributes:
        at: Its place in the stream, as Redis writes it.
        fields: What it holds, names and values by turns.
        tries: How often it was handed out.
        reason: Why the last try failed.
        history: The tries that failed, in this process.
    """

    __slots__ = ("at", "fields", "history", "reason", "tries")

    def __init__(self, at: bytes, fields: Sequence[bytes], tries: int = 0) -> None:
        self.at, self.fields, self.tries = at, fields, tries
        self.reason = "no member that had it lived to acknowledge it"
        self.history: tuple[Attempt, ...] = ()


class Member:
    """Handles one message at a time; a failing one is tried again before the next, so that order is kept.

    Messages that an earlier process of the same name held come first, one at a time, so that a message that kills its
    process counts its own tries only, and not those of the messages read with it.
    """

    def __init__(
        self,
        bus: "RedisBus",
        link: Link,
        codec: Codec,
        config: "RedisBusConfig",
        place: Place,
        handler: DeliveryHandler,
        stop: asyncio.Event,
        counts: GroupCounts,
    ) -> None:
        self._bus, self._link, self._codec, self._config = bus, link, codec, config
        self._place, self._handler, self._stop, self._counts = place, handler, stop, counts
        self._times = bus.times[place.stream]
        self._on_receipt = place.acknowledge == Acknowledge.ON_RECEIPT
        self._joined = False
        self._recovering = True
        self._held: list[Entry] = []  # read and not settled, the one in hand first
        self._known: dict[bytes, Entry] = {}  # whose tries this process knows; Redis counts answers that were lost, too
        self._acks: list[bytes] = []
        self._is_first = False  # of what was read at once
        self._is_busy = False  # the last read brought as much as it may: the next one will not wait
        self._limit = asyncio.timeout(None)
        self._is_working = False
        self._claims_at = 0.0
        self._late_until = 0.0
        self._cursor: bytes = b"0-0"
        self._watch = TrimWatch(place.key, place.group)

    def cut_at(self, when: float) -> None:
        """Cancel the handler in hand at a moment of the loop's clock."""
        if self._is_working:
            self._limit.reschedule(when)

    async def run(self) -> None:
        """Work until the bus is closed; a handler that is cut off leaves its message unacknowledged."""
        done = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_leases(done))
            try:
                async with self._limit:
                    self._is_working = True
                    await self._work()
            except TimeoutError:  # only close() sets the limit
                log.warning("handler_cut_off", stream=self._place.stream, group=self._place.group)
            finally:
                self._is_working = False
                done.set()
                await self._leave()

    async def _work(self) -> None:
        failed = 0
        while not self._stop.is_set():
            try:
                await self._round()
                failed = 0
            except GroupGone as error:
                self._forget()
                self._counts.regrouped += 1
                log.warning("group_vanished", stream=self._place.stream, group=self._place.group, why=error.why)
            except BusUnavailable as error:
                self._put_off()
                self._late_until = asyncio.get_running_loop().time() + _LATE_S
                self._counts.outages += 1
                log.warning("bus_unavailable", stream=self._place.stream, group=self._place.group, why=error.why)
                await self._pause(min(0.05 * 2**failed, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))
                failed = min(failed + 1, 10)

    def _put_off(self) -> None:
        """Begin anew with the oldest message that this member's name holds."""
        self._known |= {entry.at: entry for entry in self._held}
        self._held.clear()
        self._recovering = True

    def _forget(self) -> None:
        """Begin anew in a group that knows nothing; what was handled is not pending there any more."""
        self._joined = False
        self._place = replace(self._place, begins="0")
        self._watch = TrimWatch(self._place.key, self._place.group)
        self._held.clear()
        self._known.clear()
        self._acks.clear()

    async def _round(self) -> None:
        if not self._joined:
            await self._join()
        if self._recovering or not self._is_busy:
            await self._acknowledge()
        if self._recovering:
            await self._recover_one()
            return
        if await self._took_over():
            return
        self._held = await self._read()
        self._is_first = True
        self._is_busy = len(self._held) == self._config.batch
        if await self._was_handed_unheard():
            self._put_off()
        while self._held and not self._stop.is_set():
            await self._settle(self._held[0])

    async def _join(self) -> None:
        """Make the group where it is missing, and its stream with it."""
        place = self._place
        try:
            await self._link.ask("XGROUP", "CREATE", place.key, place.group, place.begins, "MKSTREAM")
        except GroupThere:
            log.debug("group_joined", stream=place.stream, group=place.group)
        self._joined = True
        self._recovering = True

    async def _read(self) -> list[Entry]:
        """Acknowledge what was handled, and wait for new messages, both in one journey."""
        place, config = self._place, self._config
        block_ms = max(1, round(config.block_s * 1000))
        read = (
            *("XREADGROUP", "GROUP", place.group, place.name, "COUNT", config.batch, "BLOCK", block_ms),
            *(*(("NOACK",) if self._on_receipt else ()), "STREAMS", place.key, ">"),
        )
        with self._acknowledging() as acks:
            *_, found = await self._link.ask_all([*acks, read], wait_s=config.block_s)
        if not found:
            return []
        ((_, rows),) = cast("list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]", found)
        return [Entry(at, fields) for at, fields in rows]

    async def _was_handed_unheard(self) -> bool:
        """Tell whether a read that was given up has reached Redis late, so that this name holds what nobody was told of."""
        if asyncio.get_running_loop().time() > self._late_until:
            return False
        place, first = self._place, self._held[0].at if self._held else b""
        rows = await self._link.ask(
            "XPENDING", place.key, place.group, "-", b"(" + first if first else "+", 1, place.name
        )
        return bool(rows)

    async def _recover_one(self) -> None:
        """Handle the oldest message that this member's name holds, or find that there is none."""
        place = self._place
        rows = cast(
            "list[tuple[bytes, bytes, int, int]]",
            await self._link.ask("XPENDING", place.key, place.group, "-", "+", 1, place.name),
        )
        if not rows:
            self._recovering = False
            self._known.clear()
            return
        at, _, _, count = rows[0]
        entry = self._known.setdefault(at, Entry(at, [], count))
        next_try = min(entry.tries + 1, self._config.max_tries)
        claimed = cast(
            "list[tuple[bytes, list[bytes]]]",
            await self._link.ask("XCLAIM", place.key, place.group, place.name, 0, at, "RETRYCOUNT", next_try),
        )
        if not claimed:
            # Redis takes an entry that was trimmed out of the pending list when it is claimed.
            self._lose(1, "trimmed while it was pending")
            self._known.pop(at, None)
            return
        entry.fields = claimed[0][1]
        if self._on_receipt and entry.tries < self._config.max_tries:
            await self._link.ask("XACK", place.key, place.group, at)
        self._held = [entry]
        await self._settle(entry)

    async def _took_over(self) -> bool:
        """Now and then look what was trimmed, and whether there was something to take over from members that are dead."""
        now = asyncio.get_running_loop().time()
        if self._place.watches and self._watch.is_due(now):
            self._lose(await self._watch.lost(self._link), "trimmed before the group saw it")
        if now < self._claims_at:
            return False
        self._recovering = await self._claimed()
        self._claims_at = 0.0 if self._recovering else now + self._config.claim_idle_s / 2
        return self._recovering

    async def _claimed(self) -> bool:
        """Make messages of dead members this member's own, so that the next rounds handle them like its own."""
        place, idle_ms = self._place, round(self._config.claim_idle_s * 1000)
        command = ("XAUTOCLAIM", place.key, place.group, place.name, idle_ms)
        while True:
            answer = await self._link.ask(*command, self._cursor, "COUNT", self._config.batch, "JUSTID")
            self._cursor, claimed, gone = cast("tuple[bytes, list[bytes], list[bytes]]", answer)
            self._lose(len(gone), "trimmed while it was pending")
            self._counts.claimed += len(claimed)
            if claimed or self._cursor == b"0-0":
                return bool(claimed)

    async def _settle(self, entry: Entry) -> None:
        """Hand a message out until it is acknowledged or dead; where the bus is closed meanwhile, it stays in ``_held``."""
        try:
            envelope = from_fields(entry.at.decode(), entry.fields)
            body = self._codec.open(envelope)
            if self._is_first:
                self._is_first = False
                self._times.consume.observe(since(envelope.sent_at))
        except ContractError as error:
            # Another try reads the same bytes.
            entry.tries, entry.reason = max(entry.tries, 1), str(error)
            if self._on_receipt:
                self._let_go(entry)
            else:
                await self._bury(entry)
            return
        if self._on_receipt and entry.tries < self._config.max_tries:
            await self._hand_over(entry, envelope, body)
            return
        for again in range(self._config.max_tries - entry.tries):
            if again and not await self._may_try_again(entry, again):
                return
            entry.tries += 1
            self._counts.redelivered += entry.tries > 1
            try:
                await self._call(entry, envelope, body)
            except Exception as error:  # Whatever a handler raises is a failed try; its reason goes with the message.
                entry.history = noted(entry.history, error)
                entry.reason = entry.history[-1].reason
            else:
                self._acks.append(entry.at)
                self._drop(entry)
                return
        await self._bury(entry)

    async def _hand_over(self, entry: Entry, envelope: Envelope, body: Message) -> None:
        """Hand a message out once that is acknowledged already."""
        entry.tries += 1
        self._counts.redelivered += entry.tries > 1
        handled = False
        try:
            await self._call(entry, envelope, body)
            handled = True
        except Exception as error:  # Whatever a handler raises; what was acknowledged has no second try.
            entry.reason = f"{type(error).__name__}: {error}"
        finally:
            if handled:
                self._counts.handled += 1
                self._drop(entry)
            else:
                self._let_go(entry)

    def _let_go(self, entry: Entry) -> None:
        """Count a message that was acknowledged on receipt and not handled."""
        self._counts.dropped += 1
        log.warning("message_dropped", stream=self._place.stream, group=self._place.group, why=entry.reason)
        self._drop(entry)

    def _call(self, entry: Entry, envelope: Envelope, body: Message) -> Awaitable[None]:
        delivery = Delivery(envelope.id, self._place.stream, body, envelope.run_id, entry.tries > 1)
        return handed(self._handler, delivery, envelope.traceparent)

    async def _may_try_again(self, entry: Entry, again: int) -> bool:
        """Wait, note the coming try in Redis, and tell whether the message is still this member's."""
        self._known[entry.at] = entry
        await self._pause(self._config.retry_delay_s * 2 ** (again - 1))
        if self._stop.is_set():
            return False
        if await self._hold([(entry, entry.tries + 1)]):
            return True
        self._counts.leases_lost += 1
        self._drop(entry)
        return False

    def _drop(self, entry: Entry) -> None:
        self._known.pop(entry.at, None)
        if self._held and self._held[0] is entry:
            del self._held[0]

    async def _acknowledge(self) -> None:
        """Acknowledge what was handled; where that fails it is tried again, and nothing is handled anew before."""
        if self._acks:
            with self._acknowledging() as (command,):
                await self._link.ask(*command)

    @contextmanager
    def _acknowledging(self) -> Iterator[list[Command]]:
        """Give the command that acknowledges what was handled, if anything was, to a block that sends it."""
        acks, self._acks = self._acks, []
        began = time.perf_counter()
        try:
            yield [("XACK", self._place.key, self._place.group, *acks)] if acks else []
        except BaseException:
            self._acks = acks + self._acks
            raise
        if acks:
            self._times.acknowledge.observe(time.perf_counter() - began)
        self._counts.handled += len(acks)

    async def _bury(self, entry: Entry) -> None:
        """Move a message to the dead letters and acknowledge it, both or neither; those of dead letters are dropped."""
        self._known[entry.at] = entry
        stream, ack = self._place.stream, ("XACK", self._place.key, self._place.group, entry.at)
        if stream.endswith(DEAD_SUFFIX):
            await self._link.ask(*ack)
        else:
            letter = self._letter(entry)
            await self._link.ask_all([self._bus.append(stream + DEAD_SUFFIX, letter), ack], at_once=True)
        self._counts.dead += 1
        log.warning("message_dead", stream=stream, group=self._place.group, tries=entry.tries, why=entry.reason)
        self._drop(entry)

    def _letter(self, entry: Entry) -> Envelope:
        """Return the dead letter; its id follows from the message's, so that it is known again if it is written twice."""
        try:
            envelope = from_fields(entry.at.decode(), entry.fields)
        except ContractError:
            envelope = as_found(entry.at.decode(), entry.fields, datetime.now(UTC))
        letter = DeadLetter(
            stream=self._place.stream,
            group=self._place.group,
            tries=entry.tries,
            reason=entry.reason,
            envelope=envelope,
            history=entry.history,
        )
        sealed = self._codec.seal(self._place.stream + DEAD_SUFFIX, letter, run_id=envelope.run_id)
        return msgspec.structs.replace(sealed, id=f"{envelope.id}.dead.{self._place.group}")

    async def _keep_leases(self, done: asyncio.Event) -> None:
        """Tell Redis now and then that the message in hand is worked on, and acknowledge what waits for a slow one."""
        every_s = min(self._config.claim_idle_s / 3, _ACK_WITHIN_S)
        while not await is_set_within(done, every_s):
            try:
                await self._acknowledge()
                await self._renew()
            except (BusUnavailable, GroupGone):
                continue  # The work itself meets the same, counts it and says it.

    async def _renew(self) -> None:
        held = list(self._held)
        kept = await self._hold([(entry, max(entry.tries, 1)) for entry in held])
        lost = [entry for entry in held if entry.at not in kept and entry in self._held]
        self._counts.leases_lost += len(lost)
        # The one in hand is gone on with: nobody can tell how far its effect is.
        self._held[1:] = [entry for entry in self._held[1:] if entry not in lost]

    async def _hold(self, entries: list[tuple[Entry, int]], *, idle_ms: int = 0) -> set[bytes]:
        """Set idle time and tries of messages, and return those that are this member's."""
        if not entries or self._on_receipt:
            return {entry.at for entry, _ in entries}
        place = self._place
        pairs = [value for entry, tries in entries for value in (entry.at, tries)]
        kept = await self._link.ask("EVAL", HOLD, 1, place.key, place.group, place.name, idle_ms, *pairs)
        return set(cast("list[bytes]", kept))

    async def _leave(self) -> None:
        """Acknowledge what was handled, and give back the rest so that others may take it at once."""
        if not self._joined:
            return
        for entry in list(self._held) if self._on_receipt else ():
            entry.reason = "its member ended before it was handed out"
            self._let_go(entry)
        try:
            async with asyncio.timeout(_GIVE_BACK_LIMIT_S):
                await self._acknowledge()
                await self._hold(
                    [(entry, entry.tries) for entry in self._held], idle_ms=round(self._config.claim_idle_s * 1000)
                )
        except (TimeoutError, EsperError) as error:
            log.warning("not_given_back", stream=self._place.stream, group=self._place.group, why=str(error))

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until the bus is closed."""
        await is_set_within(self._stop, seconds)

    def _lose(self, count: int, why: str) -> None:
        if count:
            self._counts.lost += count
            log.error("messages_lost", stream=self._place.stream, group=self._place.group, count=count, why=why)
