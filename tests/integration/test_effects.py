"""A message has its effect in a database once, however often it comes and whoever dies meanwhile."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import create_mock_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from esper.contracts.ids import MessageId
from esper.errors import ConfigError
from esper.ports import Delivery
from esper.services.oona.effects import Effects
from esper.services.oona.memory_bus import MemoryBus
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_readers import LIMIT_S, STREAM, Reading
from esper.testing.clock import ManualClock
from esper.testing.servers import RedisServer

GROUP = "bookkeeping"


def delivery(name: str = "m") -> Delivery:
    return Delivery(id=MessageId(name), stream=STREAM, body={}, run_id=None, redelivered=False)


async def book(connection: AsyncConnection, _: Delivery) -> None:
    await connection.execute(text("UPDATE account SET balance = balance + 1"))


async def balance(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT balance FROM account"))).scalar_one())


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE account (balance INTEGER NOT NULL)"))
        await connection.execute(text("INSERT INTO account VALUES (0)"))
    yield engine
    await engine.dispose()


@pytest.fixture
async def effects(engine: AsyncEngine) -> Effects:
    effects = Effects(engine)
    await effects.create()
    await effects.create()
    return effects


async def test_a_message_that_comes_again_has_no_second_effect(effects: Effects, engine: AsyncEngine) -> None:
    handle = effects.once(GROUP, book)
    for name in ("a", "b", "a", "a"):
        await handle(delivery(name))
    assert await balance(engine) == 2
    await effects.once("another group", book)(delivery("a"))
    assert await balance(engine) == 3


async def test_an_effect_that_fails_leaves_no_id_and_is_tried_again(effects: Effects, engine: AsyncEngine) -> None:
    tries = 0

    async def fails_after_its_effect(connection: AsyncConnection, given: Delivery) -> None:
        nonlocal tries
        await book(connection, given)
        tries += 1
        if tries == 1:
            raise RuntimeError("planted")

    async with MemoryBus() as bus, Reading(bus, effects.once(GROUP, fails_after_its_effect)):
        await bus.publish(STREAM, {"n": 0})
        assert await bus.drain(limit_s=LIMIT_S)
    assert (tries, await balance(engine)) == (2, 1)


async def test_of_two_that_are_handed_the_same_message_at_once_one_has_the_effect(
    effects: Effects, engine: AsyncEngine
) -> None:
    handle = effects.once(GROUP, book)
    await asyncio.gather(*(handle(delivery()) for _ in range(8)))
    assert await balance(engine) == 1


async def test_an_id_may_be_claimed_in_a_session_of_ones_own(effects: Effects, engine: AsyncEngine) -> None:
    for commits in (False, True, True):
        async with AsyncSession(engine) as session:
            if await effects.claim(session, "m", GROUP):
                await session.execute(text("UPDATE account SET balance = balance + 1"))
            await (session.commit() if commits else session.rollback())
    assert await balance(engine) == 1


async def test_old_ids_are_forgotten_and_young_ones_kept(engine: AsyncEngine) -> None:
    clock = ManualClock()
    effects = Effects(engine, table_name="ids", keep_s=100.0, clock=clock)
    await effects.create()
    handle = effects.once(GROUP, book)
    await handle(delivery("old"))
    clock.advance(60.0)
    await handle(delivery("young"))
    clock.advance(60.0)
    await handle(delivery("third"))  # ids are tidied with it
    assert await effects.forget() == 0
    await handle(delivery("young"))
    assert await balance(engine) == 3
    await handle(delivery("old"))
    assert await balance(engine) == 4


async def test_a_database_that_is_not_known_is_refused() -> None:
    other = create_mock_engine("mysql://", lambda *_: None)
    with pytest.raises(ConfigError, match="mysql"):
        Effects(other)  # type: ignore[arg-type]


WORKER = """
import asyncio, sys
from sqlalchemy import create_mock_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from esper.services.oona.effects import Effects
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig

async def say(word):
    print(word, flush=True)
    if word == sys.argv[4]:
        await asyncio.Event().wait()  # until it is killed

async def main():
    engine = create_async_engine(sys.argv[2])
    effects = Effects(engine)

    async def book(connection, delivery):
        await connection.execute(text("UPDATE account SET balance = balance + 1"))
        await say("written")

    handle = effects.once("bookkeeping", book)

    async def work(delivery):
        await handle(delivery)
        await say("committed")

    async with RedisBus(RedisBusConfig(url=sys.argv[1], name="worker", claim_idle_s=600, max_tries=9)) as bus:
        await bus.subscribe(sys.argv[3], "bookkeeping", work, start_from="0")

asyncio.run(main())
"""


async def heard_then_killed(server: RedisServer, engine: AsyncEngine, last: str) -> list[str]:
    """Start the worker, let it come to a point, kill it there, and return what it said."""
    source = str(Path(__file__).parents[2] / "src")
    url = engine.url.render_as_string(hide_password=False)
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, server.url, url, STREAM, last),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert worker.stdout is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(3 * LIMIT_S):
            while last not in said:
                said.append((await worker.stdout.readline()).decode().strip())
    finally:
        worker.kill()
        await worker.wait()
    return said


@pytest.mark.slow
@pytest.mark.chaos
async def test_a_worker_killed_before_or_after_its_commit_has_the_effect_once(
    effects: Effects, engine: AsyncEngine, redis_server: RedisServer
) -> None:
    async with RedisBus(RedisBusConfig(url=redis_server.url)) as bus:
        await bus.publish(STREAM, {"n": 0})
    assert await heard_then_killed(redis_server, engine, "written") == ["written"]
    assert await balance(engine) == 0
    assert await heard_then_killed(redis_server, engine, "committed") == ["written", "committed"]
    assert await balance(engine) == 1
    assert await heard_then_killed(redis_server, engine, "committed") == ["committed"], "it came again, without effect"
    assert await balance(engine) == 1
