"""The bus of one process beyond the laws of every bus: room, turns, and its end."""

import asyncio
import time

import pytest

from esper.contracts.health import HealthBatch
from esper.contracts.topics import HEALTH
from esper.errors import BusUnavailable, ConfigError
from esper.ports import Delivery
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.services.oona.memory_counts import GroupCounts
from esper.telemetry.tracing import traced, traceparent
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def of_readers(bus: MemoryBus, stream: str = STREAM) -> GroupCounts:
    return bus.counts()[stream].groups["readers"]


async def test_a_writer_waits_for_room_and_no_longer_than_its_limit() -> None:
    going_on = asyncio.Event()

    async def slow(_: Delivery) -> None:
        await going_on.wait()

    config = MemoryBusConfig(max_length=3, publish_limit_s=0.3)
    async with MemoryBus(config) as bus, Reading(bus, slow):
        await bus.publish_many(STREAM, [{"n": n} for n in range(3)])
        await asyncio.sleep(0)  # the first one is in hand now, and leaves room for one
        with pytest.raises(BusUnavailable, match="is full") as refused:
            await bus.publish_many(STREAM, [{"n": n} for n in range(3, 6)])
        assert "wait for readers" in refused.value.why
        assert bus.counts()[STREAM].published == 4
        waiting = asyncio.create_task(bus.publish(STREAM, {"n": 4}))
        await asyncio.sleep(0)
        going_on.set()
        await waiting
        assert await bus.drain(limit_s=LIMIT_S)
        assert of_readers(bus).lost == 0
        assert of_readers(bus).handled == 5


async def test_a_full_stream_of_health_drops_the_oldest_and_counts_them() -> None:
    async def never(_: Delivery) -> None:
        await asyncio.Event().wait()

    batches = [HealthBatch(run_id="run-1", step=step, signals=()) for step in range(10)]
    async with (
        MemoryBus(MemoryBusConfig(max_length=4, close_limit_s=0)) as bus,
        Reading(bus, never, stream=HEALTH.stream),
    ):
        await bus.publish(HEALTH.stream, batches[0])
        await asyncio.sleep(0)
        await bus.publish_many(HEALTH.stream, batches[1:])
        assert of_readers(bus, HEALTH.stream).lost == 5
        assert bus.counts()[HEALTH.stream].held == 4


async def test_a_handler_that_never_waits_keeps_nobody_from_a_turn() -> None:
    turns, seen = 0, 0

    async def busy(_: Delivery) -> None:
        nonlocal seen
        seen += 1
        ends_at = time.perf_counter() + 0.0002
        while time.perf_counter() < ends_at:
            pass

    async with MemoryBus() as bus:
        await bus.publish_many(STREAM, [{"n": n} for n in range(200)])
        async with Reading(bus, busy):
            while seen < 200:
                turns += 1
                await asyncio.sleep(0)
    assert turns >= 20


async def test_a_writer_that_never_waits_keeps_no_reader_from_a_turn() -> None:
    reader = Reader()
    async with MemoryBus(MemoryBusConfig(max_length=1_000)) as bus, Reading(bus, reader, stream=HEALTH.stream):
        for step in range(3_000):
            await bus.publish(HEALTH.stream, HealthBatch(run_id="run-1", step=step, signals=()))
        assert len(reader.deliveries) > 500


async def test_many_members_take_each_message_once() -> None:
    reader = Reader()
    async with MemoryBus() as bus, Reading(bus, reader), Reading(bus, reader), Reading(bus, reader):
        await bus.publish_many(STREAM, [{"n": n} for n in range(500)])
        assert await bus.drain(limit_s=LIMIT_S)
    assert reader.numbers == list(range(500))


async def test_drain_tells_whether_everything_was_handled() -> None:
    going_on = asyncio.Event()

    async def slow(_: Delivery) -> None:
        await going_on.wait()

    async with MemoryBus() as bus, Reading(bus, slow):
        await bus.publish(STREAM, {"n": 0})
        assert not await bus.drain(limit_s=0.01)
        going_on.set()
        assert await bus.drain(limit_s=LIMIT_S)


@pytest.mark.parametrize("stands_still_s", [0.0, 1.5], ids=["idle", "a loop that stands still meanwhile"])
async def test_a_handler_that_goes_on_after_the_end_is_cut_off_and_its_message_not_acknowledged(
    stands_still_s: float,
) -> None:
    bus = MemoryBus(MemoryBusConfig(close_limit_s=0.01))
    began = asyncio.Event()

    async def endless(_: Delivery) -> None:
        began.set()
        await asyncio.Event().wait()

    async with Reading(bus, endless) as subscription:
        await bus.publish(STREAM, {"n": 0})
        await began.wait()
        asyncio.get_running_loop().call_later(0.001, time.sleep, stands_still_s)
        await asyncio.gather(bus.close(), bus.close())
        await subscription
    assert (of_readers(bus).handled, of_readers(bus).in_hand, of_readers(bus).lag) == (0, 0, 1)


async def test_a_handler_that_cannot_be_cut_off_is_an_error() -> None:
    bus = MemoryBus(MemoryBusConfig(close_limit_s=0.01))
    began, ending = asyncio.Event(), asyncio.Event()

    async def deaf(_: Delivery) -> None:
        began.set()
        while not ending.is_set():
            try:
                await ending.wait()
            except asyncio.CancelledError:
                continue

    async with Reading(bus, deaf) as subscription:
        await bus.publish(STREAM, {"n": 0})
        await began.wait()
        with pytest.raises(BusUnavailable, match="cannot be closed"):
            await bus.close()
        ending.set()
        await subscription


async def test_a_timeout_of_the_handlers_own_is_a_failed_try() -> None:
    calls = 0

    async def late_once(_: Delivery) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(1)

    async with MemoryBus(MemoryBusConfig(retry_delay_s=0.001)) as bus, Reading(bus, late_once):
        await bus.publish_many(STREAM, [{"n": 0}, {"n": 1}])
        assert await bus.drain(limit_s=LIMIT_S)
        assert (of_readers(bus).handled, of_readers(bus).redelivered) == (2, 1)


async def test_a_handler_works_in_the_trace_of_its_message_and_in_no_other() -> None:
    seen: list[str | None] = []

    async def note(_: Delivery) -> None:
        seen.append(traceparent())

    async with MemoryBus() as bus:
        with traced(TRACE):
            async with Reading(bus, note):
                await bus.publish(STREAM, {"n": 0})
                with traced(None):
                    await bus.publish(STREAM, {"n": 1})
                assert await bus.drain(limit_s=LIMIT_S)
    assert seen == [TRACE, None]


async def test_a_second_event_loop_is_refused() -> None:
    refused: list[BaseException] = []

    def elsewhere(bus: MemoryBus) -> None:
        try:
            asyncio.run(bus.publish(STREAM, {"n": 1}))
        except ConfigError as error:
            refused.append(error)

    async with MemoryBus() as bus:
        await bus.publish(STREAM, {"n": 0})
        await asyncio.to_thread(elsewhere, bus)
    assert len(refused) == 1
