"""The bus on Redis keeps the laws of every bus."""

from collections.abc import AsyncIterator

import pytest

from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_contract import BusContract
from esper.testing.servers import RedisServer


class TestRedisBus(BusContract):
    @pytest.fixture
    async def bus(self, redis_server: RedisServer) -> AsyncIterator[RedisBus]:
        async with RedisBus(RedisBusConfig(url=redis_server.url, claim_idle_s=1.0)) as bus:
            yield bus
