"""Names of members and groups of runs that nobody is seen under any more are cleared away, and nothing that matters with them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest

from esper.contracts.groups import run_group
from esper.services.oona.codec import Codec
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_fields import named, to_fields
from esper.services.oona.redis_link import Link
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisServer

RUN = run_group("run-1")


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[Link]:
    link = Link(redis_server.url, 2.0)
    yield link
    await link.close()


def bus_on(server: RedisServer, *, forget_after_s: float = 3600.0, collect_after_s: float = 86_400.0) -> RedisBus:
    return RedisBus(
        RedisBusConfig(
            url=server.url, name="living", block_s=0.05, claim_idle_s=3600.0,
            forget_after_s=forget_after_s, collect_after_s=collect_after_s,
        )
    )  # fmt: skip


async def about(link: Link, *question: str) -> list[dict[bytes, object]]:
    return [named(row) for row in cast("list[object]", await link.ask("XINFO", *question))]


async def members(link: Link, group: str) -> set[bytes]:
    return {cast("bytes", row[b"name"]) for row in await about(link, "CONSUMERS", STREAM, group)}


async def groups(link: Link) -> set[str]:
    return {cast("bytes", row[b"name"]).decode() for row in await about(link, "GROUPS", STREAM)}


async def left_behind(link: Link, group: str, member: str, *, holding: int) -> None:
    """Leave a member behind that has taken messages and is seen no more."""
    await link.ask("XGROUP", "CREATE", STREAM, group, "$", "MKSTREAM")
    await link.ask("XGROUP", "CREATECONSUMER", STREAM, group, member)
    codec = Codec()
    for n in range(holding):
        await link.ask("XADD", STREAM, "*", *to_fields(codec.seal(STREAM, {"n": n})))
    if holding:
        await link.ask("XREADGROUP", "GROUP", group, member, "COUNT", holding, "STREAMS", STREAM, ">")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_names_of_members_that_are_gone_and_hold_nothing_are_forgotten(
    redis_server: RedisServer, link: Link
) -> None:
    await left_behind(link, "readers", "idle", holding=0)
    await link.ask("XGROUP", "CREATECONSUMER", STREAM, "readers", "holding")
    await link.ask("XADD", STREAM, "*", *to_fields(Codec().seal(STREAM, {"n": 0})))
    await link.ask("XREADGROUP", "GROUP", "readers", "holding", "COUNT", 1, "STREAMS", STREAM, ">")
    reader = Reader()
    async with bus_on(redis_server, forget_after_s=0.5) as bus, Reading(bus, reader):

        async def forgotten() -> bool:
            return b"idle" not in await members(link, "readers")

        await until(forgotten)
        assert bus.counts()[STREAM, "readers"].forgotten == 1
        await asyncio.sleep(1.5)
        assert b"holding" in await members(link, "readers"), "its message would go with its name"
        await bus.publish(STREAM, {"n": 1})
        await reader.wait_for(1)
        assert {b"holding", b"living.0"} == await members(link, "readers")


async def test_a_member_that_leaves_takes_its_name_along_unless_it_gives_something_back(
    redis_server: RedisServer, link: Link
) -> None:
    reader = Reader()
    async with bus_on(redis_server) as bus, Reading(bus, reader):
        await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(1)
    assert await members(link, "readers") == set()

    async def never(_: object) -> None:
        await asyncio.Event().wait()

    async with bus_on(redis_server) as bus:
        await bus.publish(STREAM, {"n": 1})
        async with Reading(bus, never):

            async def taken() -> bool:
                return any(row[b"pending"] for row in await about(link, "CONSUMERS", STREAM, "readers"))

            await until(taken)
    assert await members(link, "readers") == {b"living.0"}


async def test_a_group_of_a_killed_run_is_collected_after_its_time_and_others_are_not(
    redis_server: RedisServer, link: Link
) -> None:
    await left_behind(link, RUN, "killed", holding=0)
    await left_behind(link, "archive", "killed", holding=0)
    await link.ask("XGROUP", "CREATE", STREAM, run_group("run-2"), "$")
    async with bus_on(redis_server) as patient, Reading(patient, Reader()):
        await asyncio.sleep(1.2)
        assert {RUN, "archive"} <= await groups(link), "its time is not over"
    async with bus_on(redis_server, collect_after_s=0.5) as bus, Reading(bus, Reader(), group=run_group("run-3")):

        async def collected() -> bool:
            return await groups(link) == {"archive", "readers", run_group("run-3")}

        await until(collected)
        await asyncio.sleep(1.2)
        assert await collected(), "a run that lives keeps its group"
        assert bus.counts()[STREAM, run_group("run-3")].collected == 2


async def test_a_group_that_was_handed_a_message_which_is_still_there_is_kept_until_that_is_gone(
    redis_server: RedisServer, link: Link
) -> None:
    await left_behind(link, RUN, "killed", holding=2)
    async with bus_on(redis_server, collect_after_s=0.3) as bus, Reading(bus, Reader(), group="others"):
        await asyncio.sleep(1.5)
        assert RUN in await groups(link)
        await link.ask("XTRIM", STREAM, "MAXLEN", 0)

        async def collected() -> bool:
            return RUN not in await groups(link)

        await until(collected)
        assert bus.counts()[STREAM, "others"].collected == 1
