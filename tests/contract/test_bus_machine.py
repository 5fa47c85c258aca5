"""Random histories of every bus keep its laws, and a bus that breaks one is found out."""

import itertools
import tempfile
from pathlib import Path

import pytest

from esper.contracts.ids import MessageId, new_message_id
from esper.contracts.topics import Message
from esper.ports import Acknowledge, Delivery, DeliveryHandler, MessageBus
from esper.testing.bus_machine import run_bus_machine
from esper.testing.bus_model import LawBroken
from esper.testing.bus_subjects import MemorySubject, RedisSubject
from esper.testing.servers import RedisServer


def test_the_bus_of_one_process_keeps_the_laws_in_random_histories() -> None:
    run_bus_machine(MemorySubject, max_examples=40)


def test_the_journaled_bus_keeps_the_laws_in_random_histories(tmp_path: Path) -> None:
    run_bus_machine(lambda: MemorySubject(Path(tempfile.mkdtemp(dir=tmp_path))), max_examples=15)


@pytest.mark.slow
def test_the_bus_on_redis_keeps_the_laws_in_random_histories(redis_server: RedisServer) -> None:
    run_bus_machine(lambda: RedisSubject(redis_server.url, redis_server.ask), max_examples=25, steps=15)


class Faulty:
    """A bus with a fault; this one has none.

    Args:
        inner: Does the work.
    """

    def __init__(self, inner: MessageBus) -> None:
        self.inner = inner
        self.numbers = itertools.count(1)

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        return await self.inner.publish(stream, message, run_id=run_id, message_id=message_id)

    async def subscribe(
        self,
        stream: str,
        group: str,
        handler: DeliveryHandler,
        *,
        start_from: str = ">",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        await self.inner.subscribe(stream, group, handler, start_from=start_from, acknowledge=acknowledge)

    async def close(self) -> None:
        await self.inner.close()


class Loses(Faulty):
    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        if next(self.numbers) % 7 == 0:
            return new_message_id()
        return await self.inner.publish(stream, message, run_id=run_id, message_id=message_id)


class Doubles(Faulty):
    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        sent = await self.inner.publish(stream, message, run_id=run_id, message_id=message_id)
        if next(self.numbers) % 7 == 0:
            await self.inner.publish(stream, message, run_id=run_id, message_id=sent)
        return sent


class Disorders(Faulty):
    """Holds every third message back until the next one is sent."""

    waiting: tuple[str, Message, str | None, MessageId] | None = None

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        message_id = message_id or new_message_id()
        if next(self.numbers) % 3 == 0 and self.waiting is None:
            self.waiting = stream, message, run_id, message_id
            return message_id
        await self.inner.publish(stream, message, run_id=run_id, message_id=message_id)
        if self.waiting is not None:
            late, self.waiting = self.waiting, None
            await self.inner.publish(late[0], late[1], run_id=late[2], message_id=late[3])
        return message_id


class Reads(Faulty):
    """Changes how a handler is called, or where a group stands."""

    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        return handler

    async def subscribe(
        self,
        stream: str,
        group: str,
        handler: DeliveryHandler,
        *,
        start_from: str = ">",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        if not stream.endswith(".dead"):
            handler, group = self.handled(handler), self.group(group)
            start_from, acknowledge = self.start(start_from), self.policy(acknowledge)
        await self.inner.subscribe(stream, group, handler, start_from=start_from, acknowledge=acknowledge)

    def group(self, group: str) -> str:
        return group

    def start(self, start_from: str) -> str:
        return start_from

    def policy(self, acknowledge: Acknowledge) -> Acknowledge:
        return acknowledge


class SwallowsFailures(Reads):
    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        async def handle(delivery: Delivery) -> None:
            try:
                await handler(delivery)
            except RuntimeError:
                return

        return handle


class BuriesNothing(Reads):
    """Takes the last try for a success."""

    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        tries: dict[str, int] = {}

        async def handle(delivery: Delivery) -> None:
            tries[delivery.id] = tries.get(delivery.id, 0) + 1
            try:
                await handler(delivery)
            except RuntimeError:
                if tries[delivery.id] < 3:
                    raise

        return handle


class ForgetsAcknowledgements(Reads):
    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        async def handle(delivery: Delivery) -> None:
            await handler(delivery)
            if next(self.numbers) % 3 == 0:
                raise RuntimeError("the acknowledgement was lost")

        return handle


class HidesRedeliveries(Reads):
    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        async def handle(delivery: Delivery) -> None:
            await handler(Delivery(delivery.id, delivery.stream, delivery.body, delivery.run_id, False))

        return handle


class NamesAnew(Reads):
    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        async def handle(delivery: Delivery) -> None:
            name = new_message_id() if delivery.redelivered else delivery.id
            await handler(Delivery(name, delivery.stream, delivery.body, delivery.run_id, delivery.redelivered))

        return handle


class ForgetsTheRun(Reads):
    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        async def handle(delivery: Delivery) -> None:
            await handler(Delivery(delivery.id, delivery.stream, delivery.body, None, delivery.redelivered))

        return handle


class SharesGroups(Reads):
    def group(self, group: str) -> str:
        return "a"


class BeginsAtTheOldest(Reads):
    def start(self, start_from: str) -> str:
        return "0"


class BeginsAtTheNewest(Reads):
    def start(self, start_from: str) -> str:
        return ">"


class AcknowledgesTooEarly(Reads):
    def policy(self, acknowledge: Acknowledge) -> Acknowledge:
        return Acknowledge.ON_RECEIPT


class AcknowledgesTooLate(Reads):
    def policy(self, acknowledge: Acknowledge) -> Acknowledge:
        return Acknowledge.AFTER_HANDLING


class ClosesItself(Reads):
    def handled(self, handler: DeliveryHandler) -> DeliveryHandler:
        async def handle(delivery: Delivery) -> None:
            if next(self.numbers) > 4:
                await self.inner.close()
            await handler(delivery)

        return handle


FOUND_SOON = (Loses, Doubles, Disorders, SwallowsFailures, AcknowledgesTooEarly)
FOUND_LATER = (
    *(BuriesNothing, ForgetsAcknowledgements, HidesRedeliveries, NamesAnew, ForgetsTheRun, SharesGroups, ClosesItself),
    *(BeginsAtTheOldest, BeginsAtTheNewest, AcknowledgesTooLate),
)
FAULTS = [*FOUND_SOON, *(pytest.param(fault, marks=pytest.mark.slow) for fault in FOUND_LATER)]


class FaultySubject(MemorySubject):
    """The bus of one process, with a fault."""

    def __init__(self, folder: Path | None, fault: type[Faulty]) -> None:
        super().__init__(folder)
        self.limit_s = 1.5
        self._fault = fault

    async def open(self) -> MessageBus:
        return self._fault(await super().open())


class ForgetsOnRestart(MemorySubject):
    async def open(self) -> MessageBus:
        self._number += 1
        return await super().open()


class HidesLosses(MemorySubject):
    async def lost(self, bus: MessageBus, group: str) -> int:
        return 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: type[Faulty]) -> None:
    with pytest.raises((LawBroken, AssertionError)) as found:
        run_bus_machine(lambda: FaultySubject(None, fault), max_examples=300, shrink=False)
    assert isinstance(found.value, LawBroken)


@pytest.mark.slow
@pytest.mark.parametrize("subject", [ForgetsOnRestart, HidesLosses])
def test_what_is_forgotten_over_a_restart_and_what_is_lost_in_silence_is_found(
    subject: type[MemorySubject], tmp_path: Path
) -> None:
    def faulty() -> MemorySubject:
        made = subject(Path(tempfile.mkdtemp(dir=tmp_path)))
        made.limit_s = 1.5
        return made

    with pytest.raises(LawBroken):
        run_bus_machine(faulty, max_examples=300, shrink=False)


def test_a_bus_around_the_bus_is_no_fault() -> None:
    run_bus_machine(lambda: FaultySubject(None, Faulty), max_examples=10)
