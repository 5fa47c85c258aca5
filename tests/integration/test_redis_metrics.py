"""The bus on Redis measures itself, and what waits for every group is seen from outside."""

import asyncio
from collections.abc import Callable

from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_desk import RedisDesk
from esper.services.oona.watch import FiguresWatch
from esper.telemetry.bus_metrics import Tally, Waiting
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisServer


def limits(server: RedisServer) -> RedisBusConfig:
    return RedisBusConfig(url=server.url, block_s=0.05, retry_delay_s=0.001, reply_limit_s=0.5)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110 — there is no event for it
            await asyncio.sleep(0.01)


async def test_publishing_reading_and_acknowledging_are_timed_by_batch(redis_server: RedisServer) -> None:
    reader = Reader(failures=4)
    async with RedisBus(limits(redis_server)) as bus:
        await bus.publish_many(STREAM, [{"n": n} for n in range(10)])
        async with Reading(bus, reader):
            await reader.wait_for(13)
            await until(lambda: bus.counts()[STREAM, "readers"].handled == 9)
        times = bus.times[STREAM]
        assert sum(times.publish.counts) == 1
        assert times.publish.total_s > 0
        assert sum(times.consume.counts) == 1
        assert 0 < times.consume.total_s < LIMIT_S
        assert 1 <= sum(times.acknowledge.counts) <= 9
        assert bus.tallies() == [Tally(STREAM, "readers", redelivered=3, dead=1, lost=0)]


async def test_what_waits_for_groups_is_looked_at_and_nothing_is_said_while_the_bus_is_gone(
    redis_server: RedisServer,
) -> None:
    watch = FiguresWatch(RedisDesk(limits(redis_server)), every_s=0.02)
    reader = Reader()
    async with RedisBus(limits(redis_server)) as bus:
        async with Reading(bus, reader):
            await bus.publish(STREAM, {"n": 0})
            await reader.wait_for(1)
            await until(lambda: bus.counts()[STREAM, "readers"].handled == 1)
        for n in range(4):
            await bus.publish(STREAM, {"n": n})
    watching = asyncio.ensure_future(watch.run())
    await until(watch.waiting)
    assert watch.waiting() == [Waiting(STREAM, "readers", 4, 4)]
    redis_server.freeze()
    try:
        await until(lambda: watch.outages)
        assert watch.waiting() == []
    finally:
        redis_server.thaw()
    await until(watch.waiting)
    await watch.close()
    await watching
