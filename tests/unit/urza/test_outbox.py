"""Announcements: none without what it announces, and none lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from esper.contracts.events import BlueprintSubmitted, CompilationEvent
from esper.contracts.ids import MessageId
from esper.contracts.topics import SUBMITTED, Message
from esper.errors import BusUnavailable, Conflict, ContractError, EsperError, InvalidBlueprint
from esper.ports import Acknowledge, Delivery, DeliveryHandler
from esper.services.oona.memory_bus import MemoryBus
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.outbox import Announcement, OutboxRelay, OutboxRelayConfig
from esper.testing.forging import adapter, request_for

LIMIT_S = 10.0
EAGER = OutboxRelayConfig(poll_s=0.05, outage_s=0.01)


class FlakyBus:
    """Refuses the first announcements of blueprints, or fails after it took one: the outages that a real bus has."""

    def __init__(self, bus: MemoryBus, *, refusals: int = 0, lost_answers: int = 0) -> None:
        self.bus, self.refusals, self.lost_answers = bus, refusals, lost_answers

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        if self.refusals and stream == SUBMITTED.stream:
            self.refusals -= 1
            raise BusUnavailable("the bus is away")
        published = await self.bus.publish(stream, message, run_id=run_id, message_id=message_id)
        if self.lost_answers and stream == SUBMITTED.stream:
            self.lost_answers -= 1
            raise BusUnavailable("the answer was lost")
        return published

    async def subscribe(
        self,
        stream: str,
        group: str,
        handler: DeliveryHandler,
        *,
        start_from: str = ">",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        await self.bus.subscribe(stream, group, handler, start_from=start_from, acknowledge=acknowledge)

    async def close(self) -> None:
        await self.bus.close()


class Heard:
    """What arrived on the stream of new blueprints."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.message_ids: set[str] = set()
        self._news = asyncio.Condition()

    async def __call__(self, delivery: Delivery) -> None:
        assert isinstance(delivery.body, BlueprintSubmitted)
        self.ids.append(delivery.body.blueprint_id)
        self.message_ids.add(delivery.id)
        async with self._news:
            self._news.notify_all()

    async def count(self, expected: int) -> list[str]:
        async with asyncio.timeout(LIMIT_S), self._news:
            await self._news.wait_for(lambda: len(self.ids) >= expected)
        return self.ids


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[MemoryBus, Heard]]:
    heard = Heard()
    async with MemoryBus() as bus, asyncio.TaskGroup() as tasks:
        tasks.create_task(bus.subscribe(SUBMITTED.stream, "tezzeret", heard, start_from="0"))
        yield bus, heard
        await bus.close()


async def waiting(library: KernelManager) -> list[Message]:
    found = await library.outbox.waiting(100)
    return [announced.message for _, _, announced in found if isinstance(announced, Announcement)]


async def test_a_submission_and_its_announcement_are_stored_together(library: KernelManager) -> None:
    await library.submit(request_for(adapter(1), priority=7))
    assert await waiting(library) == [
        CompilationEvent(blueprint_id=adapter(1).digest, status="queued", queue_position=1),
        BlueprintSubmitted(blueprint_id=adapter(1).digest, priority=7),
    ]


async def test_a_refused_submission_announces_nothing(library: KernelManager) -> None:
    broken = request_for(adapter()).model_copy(update={"architecture_ir": {"layout": "features"}})
    with pytest.raises(InvalidBlueprint):
        await library.submit(broken)
    assert await waiting(library) == []


async def test_a_transaction_that_is_not_committed_announces_nothing(
    library: KernelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("the process dies here")

    # The row and the announcement are written; the crash comes just before the commit.
    monkeypatch.setattr("esper.services.urza.catalogue.Catalogue._response", crash)
    with pytest.raises(RuntimeError, match="dies here"):
        await library.submit(request_for(adapter()))
    assert await waiting(library) == []
    assert await library.claim("w", lease_s=1.0) is None


async def test_announcements_arrive_in_order_and_are_then_forgotten(library: KernelManager) -> None:
    expected = [adapter(width).digest for width in range(1, 6)]
    async with listening() as (bus, heard), OutboxRelay(library.outbox, bus, EAGER) as relay:
        for width in range(1, 6):
            await library.submit(request_for(adapter(width)))
        assert await heard.count(5) == expected
    assert relay.published == 10
    assert await waiting(library) == []


async def test_a_submission_of_this_process_wakes_the_relay_at_once(library: KernelManager) -> None:
    patient = OutboxRelayConfig(poll_s=3600.0)
    async with listening() as (bus, heard), OutboxRelay(library.outbox, bus, patient):
        await asyncio.sleep(0.05)
        await library.submit(request_for(adapter(1)))
        assert await heard.count(1) == [adapter(1).digest]


async def test_a_submission_of_another_process_is_found_by_polling(
    library: KernelManager, database_url: str, tmp_path: Path
) -> None:
    async with listening() as (bus, heard), OutboxRelay(library.outbox, bus, EAGER):
        async with await KernelManager.at(database_url, LocalBlobs(tmp_path / "blobs")) as other:
            await other.submit(request_for(adapter(1)))
        assert await heard.count(1) == [adapter(1).digest]


async def test_what_waited_when_the_process_ended_is_delivered_by_the_next(database_url: str, tmp_path: Path) -> None:
    async with await KernelManager.at(database_url, LocalBlobs(tmp_path / "blobs")) as first:
        for width in (1, 2):
            await first.submit(request_for(adapter(width)))
    async with (
        await KernelManager.at(database_url, LocalBlobs(tmp_path / "blobs")) as second,
        listening() as (bus, heard),
    ):
        async with OutboxRelay(second.outbox, bus, EAGER):
            assert await heard.count(2) == [adapter(1).digest, adapter(2).digest]
        assert await waiting(second) == []


async def test_an_outage_of_the_bus_is_counted_and_delays_but_loses_nothing(library: KernelManager) -> None:
    async with listening() as (bus, heard):
        flaky = FlakyBus(bus, refusals=3)
        await library.submit(request_for(adapter(1)))
        async with OutboxRelay(library.outbox, flaky, EAGER) as relay:
            assert await heard.count(1) == [adapter(1).digest]
        assert relay.outages == 3


@pytest.mark.parametrize("fault", [ContractError("no message of this version"), Conflict("others were always first")])
async def test_the_relay_outlives_what_it_cannot_publish_and_races_that_it_loses(
    library: KernelManager, monkeypatch: pytest.MonkeyPatch, fault: EsperError
) -> None:
    async with listening() as (bus, heard):
        publish, faults = bus.publish, [fault]

        async def faulty(stream: str, message: Message, **given: Any) -> MessageId:
            if stream == SUBMITTED.stream and faults:
                raise faults.pop()
            return await publish(stream, message, **given)

        monkeypatch.setattr(bus, "publish", faulty)
        async with OutboxRelay(library.outbox, bus, EAGER) as relay:
            await library.submit(request_for(adapter(1)))
            await library.submit(request_for(adapter(2)))
            expected = [2] if isinstance(fault, ContractError) else [1, 2]
            assert await heard.count(len(expected)) == [adapter(width).digest for width in expected]
        assert relay.unreadable + relay.outages == 1


async def test_a_lost_answer_means_a_second_delivery_under_the_same_id_and_never_none(library: KernelManager) -> None:
    async with listening() as (bus, heard):
        await library.submit(request_for(adapter(1)))
        async with OutboxRelay(library.outbox, FlakyBus(bus, lost_answers=1), EAGER):
            assert await heard.count(2) == [adapter(1).digest] * 2
    assert len(heard.message_ids) == 1
    assert await waiting(library) == []


async def test_submitting_a_finished_blueprint_again_announces_nothing(library: KernelManager) -> None:
    await library.submit(request_for(adapter(1)))
    await library.outbox.sent([number for number, _, _ in await library.outbox.waiting(2)])
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    await library.fail(job.job_id, "w", "no body", retry=False)
    await library.submit(request_for(adapter(1)))
    assert await waiting(library) == []
