from collections.abc import AsyncIterator

import pytest

from esper.errors import ConfigError, ContractError, StoreUnavailable
from esper.services.oona.redis_state import RedisState
from esper.testing.servers import RedisServer
from esper.testing.state_contract import StateContract


class TestRedisState(StateContract):
    @pytest.fixture
    async def state(self, redis_server: RedisServer) -> AsyncIterator[RedisState]:
        async with RedisState(redis_server.url) as state:
            yield state


async def test_state_is_the_same_for_every_process_and_apart_from_other_prefixes(redis_server: RedisServer) -> None:
    async with (
        RedisState(redis_server.url) as one,
        RedisState(redis_server.url) as two,
        RedisState(redis_server.url, prefix="other:") as other,
    ):
        await one.put("bandit", b"arms")
        assert await two.get("bandit") == b"arms"
        assert await other.get("bandit") is None


async def test_what_cannot_be_kept_is_told(redis_server: RedisServer) -> None:
    async with RedisState(redis_server.url) as state:
        for key in ("", "x" * 1025):
            with pytest.raises(ContractError, match="bad state key"):
                await state.put(key, b"")
        redis_server.ask("LPUSH esper:state:taken 1")
        with pytest.raises(ConfigError, match="WRONGTYPE"):
            await state.get("taken")
    async with RedisState("redis://127.0.0.1:1") as gone:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await gone.get("bandit")
