"""What publishers on Redis trim before a group saw it is counted for that group, whoever runs."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from esper.contracts.topics import HEALTH
from esper.ports import Delivery
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_desk import RedisDesk
from esper.services.oona.redis_link import Link
from esper.telemetry.bus_metrics import Tally
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisServer


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[Link]:
    link = Link(redis_server.url, 2.0)
    yield link
    await link.close()


def limits(server: RedisServer, longest: int, **others: object) -> RedisBusConfig:
    return RedisBusConfig.model_validate({"url": server.url, "max_length": longest, "block_s": 0.05} | others)


async def grouped(link: Link, group: str, *, reads: int = 0) -> None:
    """Make a group that has read some messages and has no member."""
    await link.ask("XGROUP", "CREATE", STREAM, group, "0", "MKSTREAM")
    if reads:
        await link.ask("XREADGROUP", "GROUP", group, "gone", "COUNT", reads, "NOACK", "STREAMS", STREAM, ">")


async def lost(server: RedisServer) -> dict[str, int | None]:
    desk = RedisDesk(limits(server, 1))
    try:
        (figures,) = await desk.figures()
    finally:
        await desk.close()
    return {group.group: group.lost for group in figures.groups}


@pytest.mark.parametrize("together", [False, True])
async def test_what_each_group_has_not_seen_is_counted_although_no_member_of_any_runs(
    redis_server: RedisServer, link: Link, together: bool
) -> None:
    async with RedisBus(limits(redis_server, 10)) as bus:
        await bus.publish_many(STREAM, [{"n": n} for n in range(10)])
        await grouped(link, "none")
        await grouped(link, "some", reads=7)
        await grouped(link, "all", reads=10)
        if together:
            await bus.publish_many(STREAM, [{"n": n} for n in range(15)])
        else:
            for n in range(15):
                await bus.publish(STREAM, {"n": n})
        assert bus.losses == {(STREAM, "none"): 15, (STREAM, "some"): 8, (STREAM, "all"): 5}
        assert Tally(STREAM, "some", redelivered=0, dead=0, lost=8) in bus.tallies()
    assert await lost(redis_server) == {"none": 15, "some": 8, "all": 5}


async def test_a_group_that_saw_everything_loses_nothing_by_trimming(redis_server: RedisServer, link: Link) -> None:
    reader = Reader()
    async with RedisBus(limits(redis_server, 10)) as bus, Reading(bus, reader):
        for n in range(50):
            await bus.publish(STREAM, {"n": n})
            await reader.wait_for(n + 1)
        assert bus.losses == {}
    assert await link.ask("XLEN", STREAM) == 10
    assert await lost(redis_server) == {"readers": 0}


async def test_a_slow_group_knows_what_another_process_trimmed(redis_server: RedisServer) -> None:
    go_on = asyncio.Event()
    seen: list[object] = []

    async def slow(delivery: Delivery) -> None:
        seen.append(delivery.body)
        await go_on.wait()

    async with (
        RedisBus(limits(redis_server, 4)) as writer,
        RedisBus(limits(redis_server, 4, batch=1)) as bus,
        Reading(bus, slow),
        asyncio.timeout(LIMIT_S),
    ):
        await writer.publish(STREAM, {"n": 0})
        while not seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for n in range(1, 10):
            await writer.publish(STREAM, {"n": n})
        go_on.set()
        while bus.counts()[STREAM, "readers"].lost != 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert bus.losses == {}, "who trimmed has counted it already"
        assert writer.losses == {(STREAM, "readers"): 5}
    assert seen == [{"n": 0}, *({"n": n} for n in range(6, 10))]


async def test_processes_that_publish_once_keep_a_stream_as_short_as_one_that_publishes_often(
    redis_server: RedisServer, link: Link
) -> None:
    for n in range(30):
        async with RedisBus(limits(redis_server, 20)) as bus:
            await bus.publish(STREAM, {"n": n})
    assert await link.ask("XLEN", STREAM) in (20, 21)  # a tenth more than 20, and it is trimmed
    async with RedisBus(limits(redis_server, 20)) as bus:
        for n in range(500):
            await bus.publish(STREAM, {"n": n})
    length = await link.ask("XLEN", STREAM)
    assert isinstance(length, int)
    assert 20 <= length <= 24


async def test_a_stream_that_is_far_too_long_is_trimmed_in_steps(redis_server: RedisServer, link: Link) -> None:
    async with RedisBus(limits(redis_server, 10_000)) as bus:
        await bus.publish_many(STREAM, [{"n": n} for n in range(2_000)])
    await grouped(link, "none")
    async with RedisBus(limits(redis_server, 10)) as bus:
        await bus.publish(STREAM, {"n": 0})
        assert await link.ask("XLEN", STREAM) == 2_001 - 512
        for n in range(10):
            await bus.publish(STREAM, {"n": n})
    assert await link.ask("XLEN", STREAM) == 10
    assert await lost(redis_server) == {"none": 2_001}


async def test_the_length_of_a_declared_topic_bounds_its_stream(redis_server: RedisServer, link: Link) -> None:
    batch = {"run_id": "run-1", "step": 0, "signals": []}
    async with RedisBus(limits(redis_server, 7)) as bus:
        for _ in range(20):
            await bus.publish(HEALTH.stream, dict(batch))
    assert await link.ask("XLEN", HEALTH.stream) == 7
