"""The bus on a cluster keeps the laws of every bus."""

from collections.abc import AsyncIterator, Iterator

import pytest

from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_contract import BusContract
from esper.testing.servers import RedisCluster, RedisServer


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer, redis_program: str
) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster"), program=redis_program) as cluster:
        yield cluster


@pytest.mark.slow
class TestRedisClusterBus(BusContract):
    @pytest.fixture
    async def bus(self, cluster: RedisCluster) -> AsyncIterator[RedisBus]:
        cluster.ask("FLUSHALL")
        async with RedisBus(RedisBusConfig(url=cluster.url, claim_idle_s=1.0)) as bus:
            yield bus
