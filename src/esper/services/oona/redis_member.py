"""One member of a consumer group on Redis Streams: it reads, hands out, acknowledges, and takes over from the dead."""

import asyncio
import random
import time

from esper.errors import BusUnavailable, EsperError
from esper.ports import Acknowledge, DeliveryHandler
from esper.runtime.waits import is_set_within
from esper.services.oona.codec import Codec
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_entry import Entry, GroupCounts, Hands
from esper.services.oona.redis_link import GroupGone, Link
from esper.services.oona.redis_seat import Place, Seat
from esper.services.oona.redis_settling import Settling
from esper.services.oona.redis_tending import Tending
from esper.services.oona.redis_writer import Writer
from esper.telemetry.logs import get_logger

log = get_logger("oona.redis")

_GIVE_BACK_LIMIT_S = 1.0
_LONGEST_PAUSE_S = 2.0
_LATE_S = 120.0
"""For how long a command that was given up may still reach Redis: about what TCP goes on trying for a closed connection."""
_ACK_WITHIN_S = 0.2
"""How long a handled message waits for its acknowledgement while the next one is worked on."""


class Member:
    """Handles one message at a time; a failing one is tried again before the next, so that order is kept.

    Messages that an earlier process of the same name held come first, one at a time, so that a message that kills its
    process counts its own tries only, and not those of the messages read with it.
    """

    def __init__(
        self,
        writer: Writer,
        link: Link,
        codec: Codec,
        config: RedisBusConfig,
        place: Place,
        handler: DeliveryHandler,
        stop: asyncio.Event,
        counts: GroupCounts,
    ) -> None:
        self._config, self._place, self._stop, self._counts = config, place, stop, counts
        self._acknowledge_times = writer.times[place.stream].acknowledge
        self._on_receipt = place.acknowledge == Acknowledge.ON_RECEIPT
        self._hands = Hands()
        self._seat = Seat(link, place, batch=config.batch, block_s=config.block_s)
        self._settling = Settling(writer, link, codec, config, self._seat, self._hands, handler, stop, counts)
        self._tending = Tending(link, self._seat, config, counts) if place.leads else None
        self._begins = place.begins
        self._joined = False
        self._joined_at = 0.0
        self._vanished = 0  # times in a row that the group was gone soon after it was joined
        self._recovering = True
        self._is_busy = False  # the last read brought as much as it may: the next one will not wait
        self._limit = asyncio.timeout(None)
        self._is_working = False
        self._claims_at = 0.0
        self._late_until = 0.0
        self._cursor: bytes = b"0-0"
        self._losses = writer.losses

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
                now = asyncio.get_running_loop().time()
                self._vanished = 0 if now > self._joined_at + _LONGEST_PAUSE_S else self._vanished + 1
                await self._rest(self._vanished)
            except BusUnavailable as error:
                self._put_off()
                self._late_until = asyncio.get_running_loop().time() + _LATE_S
                self._counts.outages += 1
                log.warning("bus_unavailable", stream=self._place.stream, group=self._place.group, why=error.why)
                failed += 1
                await self._rest(failed)

    async def _rest(self, failed: int) -> None:
        """Pause longer with every time that something failed in a row; not at all before the first."""
        if failed:
            pause_s = min(0.05 * 2 ** min(failed - 1, 10), _LONGEST_PAUSE_S)
            await is_set_within(self._stop, pause_s * random.uniform(0.5, 1.0))

    def _put_off(self) -> None:
        """Begin anew with the oldest message that this member's name holds."""
        self._hands.put_off()
        self._recovering = True

    def _forget(self) -> None:
        """Begin anew in a group that knows nothing; what was handled is not pending there any more."""
        self._joined = False
        self._begins = "0"
        self._hands.forget()

    async def _round(self) -> None:
        if not self._joined:
            await self._seat.join(self._begins)
            self._joined = self._recovering = True
            self._joined_at = asyncio.get_running_loop().time()
        if self._tending is not None:
            await self._tending.look()
        if self._recovering or not self._is_busy:
            await self._acknowledge()
        if self._recovering:
            await self._recover_one()
            return
        if await self._took_over():
            return
        held = self._hands.held = await self._read()
        self._settling.is_first = True
        self._is_busy = len(held) == self._config.batch
        if await self._was_handed_unheard():
            self._put_off()
        while self._hands.held and not self._stop.is_set():
            await self._settling.settle(self._hands.held[0])

    async def _read(self) -> list[Entry]:
        acks, self._hands.acks = self._hands.acks, []
        began = time.perf_counter()
        try:
            rows = await self._seat.read(acks)
        except BaseException:
            self._hands.acks = acks + self._hands.acks
            raise
        self._note_acknowledged(acks, began)
        return [Entry(at, fields) for at, fields in rows]

    async def _acknowledge(self) -> None:
        """Acknowledge what was handled; where that fails it is tried again, and nothing is handled anew before."""
        if not self._hands.acks:
            return
        acks, self._hands.acks = self._hands.acks, []
        began = time.perf_counter()
        try:
            await self._seat.acknowledge(acks)
        except BaseException:
            self._hands.acks = acks + self._hands.acks
            raise
        self._note_acknowledged(acks, began)

    def _note_acknowledged(self, acks: list[bytes], began: float) -> None:
        if acks:
            self._acknowledge_times.observe(time.perf_counter() - began)
            self._counts.handled += len(acks)

    async def _was_handed_unheard(self) -> bool:
        """Tell whether a read that was given up has reached Redis late, so that this name holds what nobody was told of."""
        if asyncio.get_running_loop().time() > self._late_until:
            return False
        held = self._hands.held
        return await self._seat.oldest(held[0].at if held else b"") is not None

    async def _recover_one(self) -> None:
        """Handle the oldest message that this member's name holds, or find that there is none."""
        found = await self._seat.oldest()
        if found is None:
            self._recovering = False
            self._hands.known.clear()
            return
        at, count = found
        entry = self._hands.known.setdefault(at, Entry(at, [], count))
        fields = await self._seat.take(at, min(entry.tries + 1, self._config.max_tries))
        if fields is None:
            await self._lose(1)
            self._hands.known.pop(at, None)
            return
        entry.fields = fields
        if self._on_receipt and entry.tries < self._config.max_tries:
            await self._seat.acknowledge([at])
        self._hands.held = [entry]
        await self._settling.settle(entry)

    async def _took_over(self) -> bool:
        """Now and then look whether there is something to take over from members that are dead, and tell whether there was."""
        now = asyncio.get_running_loop().time()
        if now < self._claims_at:
            return False
        self._recovering = await self._claimed()
        self._claims_at = 0.0 if self._recovering else now + self._config.claim_idle_s / 2
        return self._recovering

    async def _claimed(self) -> bool:
        """Make messages of dead members this member's own, so that the next rounds handle them like its own."""
        idle_ms = round(self._config.claim_idle_s * 1000)
        while True:
            self._cursor, claimed, gone = await self._seat.take_over(idle_ms, self._cursor)
            self._counts.claimed += claimed
            if gone:
                await self._lose(gone)
            if claimed or self._cursor == b"0-0":
                return bool(claimed)

    async def _lose(self, count: int) -> None:
        """Count messages that were trimmed while they were pending."""
        self._losses.add(self._place.stream, self._place.group, count, why="trimmed while it was pending")
        await self._seat.lose(count)

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
        held = list(self._hands.held)
        if not held or self._on_receipt:
            return
        kept = await self._seat.hold([(entry.at, max(entry.tries, 1)) for entry in held])
        lost = [entry for entry in held if entry.at not in kept and entry in self._hands.held]
        self._counts.leases_lost += len(lost)
        # The one in hand is gone on with: nobody can tell how far its effect is.
        self._hands.held[1:] = [entry for entry in self._hands.held[1:] if entry not in lost]

    async def _leave(self) -> None:
        """Acknowledge what was handled, and give back the rest so that others may take it at once."""
        if not self._joined:
            return
        for entry in list(self._hands.held) if self._on_receipt else ():
            entry.reason = "its member ended before it was handed out"
            self._settling.let_go(entry)
        try:
            async with asyncio.timeout(_GIVE_BACK_LIMIT_S):
                await self._acknowledge()
                held = [(entry.at, entry.tries) for entry in self._hands.held]
                if held:
                    await self._seat.hold(held, idle_ms=round(self._config.claim_idle_s * 1000))
                await self._seat.leave()
        except (TimeoutError, EsperError) as error:
            log.warning("not_given_back", stream=self._place.stream, group=self._place.group, why=str(error))
