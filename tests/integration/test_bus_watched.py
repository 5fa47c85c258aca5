"""A store and a training that are on a shared bus give what waits for every group on it, also for those of other processes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from prometheus_client import generate_latest

from esper.assembly import embedded
from esper.contracts.events import CompilationEvent
from esper.contracts.topics import COMPILATIONS
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.tamiyo.plateau import PlateauAdvisor
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.bus_readers import LIMIT_S, STREAM
from esper.testing.servers import RedisServer
from esper.testing.store_server import served

WAITING = f'esper_oona_lag_messages{{bus="shared",group="plotters",stream="{STREAM}"}} 3.0'


async def leave_messages_waiting(server: RedisServer) -> None:
    """Publish what a group without a member has not seen."""
    server.ask(f"XGROUP CREATE {STREAM} plotters $ MKSTREAM")
    async with RedisBus(RedisBusConfig(url=server.url)) as elsewhere:
        await elsewhere.publish_many(STREAM, [{"n": n} for n in range(3)])


async def shows(text: str, told: Callable[[], Awaitable[str]]) -> str:
    """Return what is told once a line is in it."""
    async with asyncio.timeout(LIMIT_S):
        while text not in (found := await told()):  # noqa: ASYNC110 — there is no event for it
            await asyncio.sleep(0.02)
    return found


async def test_a_store_tells_what_waits_on_the_bus_that_it_is_on(redis_server: RedisServer, tmp_path: Path) -> None:
    await leave_messages_waiting(redis_server)
    config = UrzaConfig.model_validate({"root": tmp_path, "bus_url": redis_server.url})
    async with (
        await KernelManager.open(tmp_path / "library") as manager,
        served(manager, config) as address,
        aiohttp.ClientSession(address) as session,
    ):

        async def told() -> str:
            async with session.get("/metrics") as answer:
                return await answer.text()

        await shows(WAITING, told)


async def test_a_training_tells_what_waits_on_the_bus_that_it_shares(redis_server: RedisServer, tmp_path: Path) -> None:
    await leave_messages_waiting(redis_server)
    shared = RedisBus(RedisBusConfig(url=redis_server.url))
    async with embedded(tmp_path, PlateauAdvisor(), shared=shared) as services:

        async def told() -> str:
            return generate_latest(services.metrics.registry).decode()

        await shows(WAITING, told)
        await services.bus.publish(COMPILATIONS.stream, CompilationEvent(blueprint_id="sha256:0", status="started"))
        carried = f'esper_oona_publish_seconds_count{{bus="shared",stream="{COMPILATIONS.stream}"}} 1.0'
        found = await shows(carried, told)
    assert f'esper_oona_publish_seconds_count{{bus="local",stream="{COMPILATIONS.stream}"}} 1.0' in found
