"""What the bus on Redis does when the network, a clock or a reader fails it, one fault at a time."""

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from esper.errors import BusUnavailable
from esper.ports import Delivery
from esper.services.oona.once import once
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_readers import STREAM, Reader, Reading
from esper.testing.leap import LeapingClock
from esper.testing.proxy import FaultProxy, Way
from esper.testing.servers import RedisServer

pytestmark = pytest.mark.chaos


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(redis_server.port) as proxy:
        yield proxy


@asynccontextmanager
async def bus_at(port: int, **limits: object) -> AsyncIterator[RedisBus]:
    config = {"claim_idle_s": 1.0, "block_s": 0.1, "reply_limit_s": 0.3, "publish_limit_s": 5.0, "batch": 4} | limits
    async with RedisBus(RedisBusConfig.model_validate({"url": f"redis://127.0.0.1:{port}"} | config)) as bus:
        yield bus


async def until(holds: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 15.0
    while not holds():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)


class Slow(Reader):
    """A reader that rests a little with each message."""

    async def __call__(self, delivery: Delivery) -> None:
        await asyncio.sleep(0.03)
        await super().__call__(delivery)


async def test_a_read_that_arrives_late_does_not_break_the_order(redis_server: RedisServer, proxy: FaultProxy) -> None:
    """The member gave that read up long ago; Redis hands it messages whose answer nobody hears."""
    reader = Slow()
    async with bus_at(redis_server.port) as writer, bus_at(proxy.port) as bus, Reading(bus, reader):
        for n in range(10):
            await writer.publish(STREAM, {"n": n})
        await reader.wait_for(1)
        proxy.delay(Way.UP, 1.2, containing=b"XREADGROUP")
        for n in range(10, 80):
            await writer.publish(STREAM, {"n": n})
        await until(lambda: len(set(map(str, reader.numbers))) == 80)
    assert list(dict.fromkeys(reader.numbers)) == list(range(80))


async def test_an_answer_that_was_cut_makes_a_second_copy_that_readers_know_by_its_id(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    every, first = Reader(), Reader()
    async with bus_at(proxy.port) as bus, bus_at(redis_server.port) as other:
        await bus.publish(STREAM, {"n": 0})
        proxy.cut(Way.DOWN, after_bytes=3)
        await bus.publish(STREAM, {"n": 1})
        await bus.publish(STREAM, {"n": 2})
        async with Reading(other, every), Reading(other, once(first), group="once"):
            await every.wait_for(4)
            await first.wait_for(3)
    assert every.numbers == [0, 1, 1, 2]
    assert every.deliveries[1].id == every.deliveries[2].id
    assert first.numbers == [0, 1, 2]


async def test_half_open_connections_are_given_up_and_nothing_is_lost(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    reader = Reader()
    async with bus_at(proxy.port) as bus, bus_at(redis_server.port) as writer, Reading(bus, reader):
        await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(1)
        proxy.swallow()
        for n in range(1, 5):
            await writer.publish(STREAM, {"n": n})
        late = asyncio.create_task(bus.publish(STREAM, {"n": 5}))
        await asyncio.sleep(0.5)
        assert reader.numbers == [0]
        assert not late.done()
        await proxy.heal()
        await late
        await until(lambda: 5 in reader.numbers)
    assert list(dict.fromkeys(reader.numbers)) == list(range(6))


async def test_a_network_with_latency_and_jitter_delays_everything_and_doubles_nothing(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    """Each answer comes within the limit of a command, so that nothing is given up and sent again."""
    reader = Reader()
    async with bus_at(proxy.port, reply_limit_s=5.0) as bus, Reading(bus, reader):
        proxy.slow(latency_s=0.05, jitter_s=0.1)
        for n in range(20):
            await bus.publish(STREAM, {"n": n})
        await reader.wait_for(20)
        times = bus.times[STREAM].publish
    assert reader.numbers == list(range(20))
    assert not any(delivery.redelivered for delivery in reader.deliveries)
    assert times.total_s >= 20 * 2 * 0.05


async def test_a_throttled_network_carries_what_it_can_and_loses_nothing(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    reader, bytes_per_s = Reader(), 40_000
    async with bus_at(proxy.port, reply_limit_s=2.0, publish_limit_s=20.0) as bus, Reading(bus, once(reader)):
        proxy.slow(bytes_per_s=bytes_per_s)
        sent = [
            await bus.publish_many(STREAM, [{"n": n + more, "fill": "x" * 500} for more in range(10)])
            for n in range(0, 100, 10)
        ]
        await until(lambda: len(reader.numbers) == 100)
        times = bus.times[STREAM].publish
    assert [delivery.id for delivery in reader.deliveries] == [id for ids in sent for id in ids]
    assert times.total_s >= 100 * 500 / bytes_per_s


async def test_a_network_too_slow_for_any_answer_is_an_outage_that_ends(
    redis_server: RedisServer, proxy: FaultProxy
) -> None:
    reader = Reader()
    async with bus_at(proxy.port, publish_limit_s=1.0) as bus, Reading(bus, once(reader)):
        await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(1)
        proxy.slow(latency_s=1.0)
        with pytest.raises(BusUnavailable, match="no answer within"):
            await bus.publish(STREAM, {"n": 1})
        assert not (await bus.health()).usable
        await until(lambda: bus.counts()[STREAM, "readers"].outages)
        await proxy.heal()
        await bus.publish(STREAM, {"n": 2})
        await until(lambda: 2 in reader.numbers)
        assert (await bus.health()).usable
    assert reader.numbers[0] == 0
    assert len(reader.numbers) == len(set(map(str, reader.numbers)))


async def test_a_server_whose_clock_leaps_ahead_loses_nothing_and_members_that_lose_leases_know_ids(
    tmp_path: Path, redis_program: str
) -> None:
    """Redis measures leases by its time of day: all look old at once, and another member takes over what one works on."""
    clock = leaping(tmp_path)
    going_on, started = asyncio.Event(), asyncio.Event()

    async def waits(_: Delivery) -> None:
        started.set()
        await going_on.wait()

    reader = Reader()
    with RedisServer(tmp_path, program=redis_program, wrapper=clock.wrapper) as server:
        async with bus_at(server.port) as slow, bus_at(server.port) as other, Reading(slow, waits):
            for n in range(4):
                await slow.publish(STREAM, {"n": n})
            await started.wait()
            clock.leap(3600.0)
            async with Reading(other, reader):
                await until(lambda: set(map(str, reader.numbers)) == set("0123"))
                going_on.set()
    assert all(delivery.redelivered for delivery in reader.deliveries)


async def test_a_server_whose_clock_is_set_back_takes_over_later_and_keeps_the_order(
    tmp_path: Path, redis_program: str
) -> None:
    clock = leaping(tmp_path)
    reader = Reader()
    with RedisServer(tmp_path, program=redis_program, wrapper=clock.wrapper) as server:
        async with bus_at(server.port, name="worker") as bus, Reading(bus, reader):
            for n in range(20):
                if n % 5 == 0:
                    clock.leap(-60.0)
                await bus.publish(STREAM, {"n": n})
            await reader.wait_for(20)
    assert reader.numbers == list(range(20))


def leaping(folder: Path) -> LeapingClock:
    if shutil.which("cc") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no C compiler here")
    return LeapingClock(folder)
