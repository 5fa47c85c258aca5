"""Batches are bounded in size and time, keep order, and answer each sender for its own message."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.ids import MessageId
from esper.contracts.topics import COMPILATIONS, HEALTH, Message
from esper.errors import BusUnavailable, ContractError
from esper.ports import MessageBus
from esper.services.oona.memory_bus import MemoryBus
from esper.services.oona.micro_batch import HealthBatcher, MicroBatchConfig, MicroBatcher
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading

PATIENT = MicroBatchConfig(max_messages=4, max_wait_s=60.0)


class Counting(MemoryBus):
    """A bus that writes down the sizes of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def publish_many(
        self, stream: str, messages: Sequence[Message], *, run_id: str | None = None
    ) -> list[MessageId]:
        self.sizes.append(len(messages))
        return await super().publish_many(stream, messages, run_id=run_id)


class OneByOne:
    """A bus that has nothing but the port."""

    def __init__(self, bus: MemoryBus) -> None:
        self.publish, self.subscribe, self.close = bus.publish, bus.subscribe, bus.close


@pytest.mark.parametrize("wrap", [lambda bus: bus, OneByOne], ids=["many", "one by one"])
async def test_messages_keep_their_order_and_each_has_its_id(wrap: type[OneByOne]) -> None:
    reader = Reader()
    async with MemoryBus() as bus, Reading(bus, reader):
        port: MessageBus = wrap(bus)
        async with MicroBatcher(port, PATIENT) as batcher:
            sent = [await batcher.add(STREAM, {"n": n}) for n in range(10)]
        await reader.wait_for(10)
        assert [delivery.id for delivery in reader.deliveries] == [future.result() for future in sent]
    assert reader.numbers == list(range(10))


async def test_a_full_batch_leaves_at_once_and_another_one_in_time() -> None:
    async with Counting() as bus:
        async with MicroBatcher(bus, PATIENT) as batcher, asyncio.timeout(LIMIT_S):
            await asyncio.gather(*[await batcher.add(STREAM, {"n": n}) for n in range(8)])
        async with MicroBatcher(bus, MicroBatchConfig(max_wait_s=0.01)) as batcher, asyncio.timeout(LIMIT_S):
            await (await batcher.add(STREAM, {"n": 8}))
    assert bus.sizes == [4, 4, 1]


@pytest.mark.parametrize("wrap", [lambda bus: bus, OneByOne], ids=["many", "one by one"])
async def test_a_broken_message_is_refused_and_its_neighbours_are_not(wrap: type[OneByOne]) -> None:
    sound = {"blueprint_id": "sha256:b", "status": "started"}
    async with MemoryBus() as bus:
        async with MicroBatcher(wrap(bus), PATIENT) as batcher:
            sent = [await batcher.add(COMPILATIONS.stream, message) for message in (sound, {"status": "?"}, sound)]
        errors = [future.exception() for future in sent]
        assert bus.counts()[COMPILATIONS.stream].published == 2
    assert [type(error) for error in errors] == [type(None), ContractError, type(None)]


async def test_a_sender_waits_where_too_many_messages_are_on_their_way() -> None:
    async with MemoryBus() as bus:
        batcher = MicroBatcher(bus, MicroBatchConfig(max_messages=100, max_wait_s=60.0, max_waiting=2))
        sent = [await batcher.add(STREAM, {"n": n}) for n in range(2)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.add(STREAM, {"n": 2})
        await batcher.close()
        assert all(future.done() for future in sent)
        with pytest.raises(BusUnavailable, match="closed"):
            await batcher.add(STREAM, {"n": 3})


async def test_the_error_of_the_bus_goes_to_every_sender_of_the_batch() -> None:
    bus = MemoryBus()
    await bus.close()
    async with MicroBatcher(bus, PATIENT) as batcher:
        sent = [await batcher.add(STREAM, {"n": n}) for n in range(2)]
    for future in sent:
        with pytest.raises(BusUnavailable):
            await future


def signal(step: int, index: int = 0) -> HealthSignal:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    return HealthSignal(layer_id="fc", seed_idx=index, timestamp=noon, metrics={}, run_id="run-1", step=step)


async def test_signals_of_a_step_travel_in_one_envelope() -> None:
    reader = Reader()
    async with MemoryBus() as bus, Reading(bus, reader, stream=HEALTH.stream):
        async with HealthBatcher(bus, PATIENT) as batcher:
            sent = [await batcher.add(signal(step, index)) for step in (1, 2) for index in range(3)]
        await reader.wait_for(2)
    bodies = [delivery.body for delivery in reader.deliveries]
    assert bodies == [
        HealthBatch(run_id="run-1", step=step, signals=tuple(signal(step, index) for index in range(3)))
        for step in (1, 2)
    ]
    assert [future.result() for future in sent] == [d.id for d in reader.deliveries for _ in range(3)]


async def test_a_signal_that_does_not_say_its_step_is_refused() -> None:
    async with MemoryBus() as bus, HealthBatcher(bus) as batcher:
        with pytest.raises(ContractError, match="no run_id or no step"):
            await batcher.add(HealthSignal(layer_id="fc", seed_idx=0, timestamp=datetime.now(UTC), metrics={}))
