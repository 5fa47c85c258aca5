"""What becomes of one message that a member on Redis holds: it is handed out until it is acknowledged or dead."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime

import msgspec

from esper.contracts.envelope import DeadLetter, Envelope
from esper.contracts.topics import Message
from esper.errors import ContractError
from esper.ports import Acknowledge, Delivery, DeliveryHandler
from esper.runtime.waits import is_set_within
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.handing import handed, noted
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_entry import Entry, GroupCounts, Hands
from esper.services.oona.redis_fields import as_found, from_fields
from esper.services.oona.redis_link import Link
from esper.services.oona.redis_seat import Seat
from esper.services.oona.redis_writer import Writer
from esper.telemetry.bus_metrics import since
from esper.telemetry.logs import get_logger

log = get_logger("oona.redis")


class Settling:
    """Hands messages out, one at a time, and tries a failing one again before the next.

    Args:
        writer: Appends dead letters.
        link: Where they go.
        codec: Opens envelopes.
        config: Tries and pauses.
        seat: The member's.
        hands: What the member holds.
        handler: Is handed the messages.
        stop: Ends pauses.
        counts: What is counted.

    Attributes:
        is_first: Whether the next message is the first of what was read at once.
    """

    def __init__(
        self,
        writer: Writer,
        link: Link,
        codec: Codec,
        config: RedisBusConfig,
        seat: Seat,
        hands: Hands,
        handler: DeliveryHandler,
        stop: asyncio.Event,
        counts: GroupCounts,
    ) -> None:
        self._writer, self._link, self._codec, self._config = writer, link, codec, config
        self._seat, self._hands, self._handler, self._stop, self._counts = seat, hands, handler, stop, counts
        self._place = seat.place
        self._times = writer.times[self._place.stream]
        self._on_receipt = self._place.acknowledge == Acknowledge.ON_RECEIPT
        self.is_first = False

    async def settle(self, entry: Entry) -> None:
        """Hand a message out until it is acknowledged or dead; where the bus is closed meanwhile, it stays held."""
        try:
            envelope = from_fields(entry.at, entry.fields)
            body = self._codec.open(envelope)
        except ContractError as error:
            # Another try reads the same bytes.
            entry.tries, entry.reason = max(entry.tries, 1), str(error)
            if self._on_receipt:
                self.let_go(entry)
            else:
                await self._bury(entry)
            return
        if self.is_first:
            self.is_first = False
            self._times.consume.observe(since(envelope.sent_at))
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
                self._hands.acks.append(entry.at)
                self._hands.drop(entry)
                return
        await self._bury(entry)

    def let_go(self, entry: Entry) -> None:
        """Count a message that was acknowledged on receipt and not handled."""
        self._counts.dropped += 1
        log.warning("message_dropped", stream=self._place.stream, group=self._place.group, why=entry.reason)
        self._hands.drop(entry)

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
                self._hands.drop(entry)
            else:
                self.let_go(entry)

    def _call(self, entry: Entry, envelope: Envelope, body: Message) -> Awaitable[None]:
        delivery = Delivery(envelope.id, self._place.stream, body, envelope.run_id, entry.tries > 1)
        return handed(self._handler, delivery, envelope.traceparent)

    async def _may_try_again(self, entry: Entry, again: int) -> bool:
        """Wait, note the coming try in Redis, and tell whether the message is still this member's."""
        self._hands.known[entry.at] = entry
        await is_set_within(self._stop, self._config.retry_delay_s * 2 ** (again - 1))
        if self._stop.is_set():
            return False
        if self._on_receipt or await self._seat.hold([(entry.at, entry.tries + 1)]):
            return True
        self._counts.leases_lost += 1
        self._hands.drop(entry)
        return False

    async def _bury(self, entry: Entry) -> None:
        """Move a message to the dead letters and acknowledge it, both or neither; those of dead letters are dropped."""
        self._hands.known[entry.at] = entry
        stream, ack = self._place.stream, self._seat.acknowledging([entry.at])
        if stream.endswith(DEAD_SUFFIX):
            await self._link.ask(*ack)
        else:
            grave = stream + DEAD_SUFFIX
            commands = [*self._writer.append(grave, [self._letter(entry)]), ack]
            *_, appended, _ = await self._link.ask_all(commands, at_once=True)
            self._writer.note_lost(grave, appended)
        self._counts.dead += 1
        log.warning("message_dead", stream=stream, group=self._place.group, tries=entry.tries, why=entry.reason)
        self._hands.drop(entry)

    def _letter(self, entry: Entry) -> Envelope:
        """Return the dead letter; its id follows from the message's, so that it is known again if it is written twice."""
        try:
            envelope = from_fields(entry.at, entry.fields)
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
