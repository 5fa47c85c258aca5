"""A group that vanishes again and again is made again as often, and no loop runs hot over it."""

import asyncio
import re
from collections.abc import Callable

import pytest

from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisServer

DESTROY = f"XGROUP DESTROY {STREAM} readers"


def calls(server: RedisServer) -> dict[str, int]:
    """Return how often each command was called."""
    told = server.ask("INFO commandstats").decode()
    return {name: int(count) for name, count in re.findall(r"cmdstat_([a-z|]+):calls=(\d+)", told)}


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def limits(server: RedisServer) -> RedisBusConfig:
    return RedisBusConfig(url=server.url, block_s=0.1, claim_idle_s=600.0)


@pytest.mark.parametrize("command", [DESTROY, "FLUSHALL"])
async def test_each_vanishing_costs_one_group_and_a_handful_of_commands(
    redis_server: RedisServer, command: str
) -> None:
    reader = Reader()
    async with RedisBus(limits(redis_server)) as bus, Reading(bus, reader):
        for n in range(3):
            await bus.publish(STREAM, {"n": n})
            await until(lambda n=n: n in reader.numbers)  # type: ignore[misc]
            redis_server.ask("CONFIG RESETSTAT")
            redis_server.ask(command)
            await until(lambda: calls(redis_server).get("xgroup|create"))
            await asyncio.sleep(0.2)
            made = calls(redis_server)
            assert made["xgroup|create"] == 1
            assert made["xreadgroup"] <= 8, "it waits for messages, a tenth of a second at a time"
        assert bus.counts()[STREAM, "readers"].regrouped == 3


async def test_a_group_that_somebody_destroys_without_end_is_made_again_ever_more_slowly(
    redis_server: RedisServer,
) -> None:
    reader = Reader()
    async with RedisBus(limits(redis_server)) as bus, Reading(bus, reader):
        await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(1)
        redis_server.ask("CONFIG RESETSTAT")
        ends_at = asyncio.get_running_loop().time() + 2.0
        while asyncio.get_running_loop().time() < ends_at:
            redis_server.ask(DESTROY)
            await asyncio.sleep(0.001)
        made = calls(redis_server)
        assert made["xgroup|destroy"] > 100
        assert made["xgroup|create"] <= 12, "the pause doubles with each time that the group is gone again soon"
        await bus.publish(STREAM, {"n": 1})
        await until(lambda: 1 in reader.numbers)
