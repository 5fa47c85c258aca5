"""A Redis that would not take a message says so before one is lost on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.errors import ConfigError
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_readers import STREAM
from esper.testing.servers import RedisServer


def limits(server: RedisServer, user: str = "") -> RedisBusConfig:
    return RedisBusConfig(url=f"redis://{user}127.0.0.1:{server.port}", reply_limit_s=0.5, block_s=0.05)


@pytest.fixture
def full(redis_server: RedisServer) -> Iterator[RedisServer]:
    """Return a server that has no memory left."""
    redis_server.ask("CONFIG SET maxmemory-policy noeviction")
    redis_server.ask("CONFIG SET maxmemory 1")
    yield redis_server
    redis_server.ask("CONFIG SET maxmemory 0")


async def test_a_server_tells_what_it_is_and_holds(redis_server: RedisServer) -> None:
    async with RedisBus(limits(redis_server)) as bus:
        await bus.publish_many(STREAM, [{"n": n} for n in range(5)])
        await bus.create_topic("made")
        found = await bus.health()
    assert found.server.startswith(("Redis 7", "Redis 8", "Valkey "))
    assert found.server.endswith("(master)")
    assert (found.streams, found.messages, found.limit_bytes) == (2, 5, None)
    assert found.used_bytes is not None
    assert found.used_bytes > 100_000
    assert b"oona.probe" not in redis_server.ask("KEYS *")


async def test_one_without_memory_is_not_usable(full: RedisServer) -> None:
    async with RedisBus(limits(full)) as bus:
        found = await bus.health()
    assert not found.usable
    assert "maxmemory" in found.why
    assert found.limit_bytes == 1


async def test_a_replica_is_not_usable(redis_server: RedisServer, tmp_path: Path, redis_program: str) -> None:
    options = {"replicaof": f"127.0.0.1 {redis_server.port}"}
    with RedisServer(tmp_path, options, program=redis_program) as replica:
        async with RedisBus(limits(replica)) as bus:
            found = await bus.health()
    assert not found.usable
    assert "read only replica" in found.why
    assert "(replica)" in found.server


async def test_one_that_does_not_answer_is_not_usable_and_is_again_afterwards(redis_server: RedisServer) -> None:
    async with RedisBus(limits(redis_server)) as bus:
        redis_server.freeze()
        try:
            found = await bus.health()
        finally:
            redis_server.thaw()
        assert not found.usable
        assert "does not answer" in found.why
        assert (await bus.health()).usable


async def test_a_user_that_may_not_ask_is_told(redis_server: RedisServer) -> None:
    redis_server.ask("ACL SETUSER app on nopass ~* +@all -info")
    try:
        async with RedisBus(limits(redis_server, "app:none@")) as bus:
            with pytest.raises(ConfigError, match="info"):
                await bus.health()
    finally:
        redis_server.ask("ACL DELUSER app")
