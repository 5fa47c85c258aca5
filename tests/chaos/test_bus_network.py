"""What the bus on Redis does when the network between fails it, one fault at a time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from esper.ports import Delivery
from esper.services.oona.redis_bus import RedisBus, RedisBusConfig
from esper.testing.bus_contract import STREAM, Reader, Reading
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
