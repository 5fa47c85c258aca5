"""The bus on more than one Redis: a cluster, and a master with a replica that sentinels watch over."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from redis.crc import key_slot

from esper.errors import ConfigError
from esper.services.oona.redis_address import Kind, read_address
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisCluster, RedisSentinel, RedisServer


@asynccontextmanager
async def bus_at(url: str, **limits: object) -> AsyncIterator[RedisBus]:
    config = {"claim_idle_s": 0.5, "block_s": 0.05, "reply_limit_s": 0.5, "publish_limit_s": 20.0} | limits
    async with RedisBus(RedisBusConfig.model_validate({"url": url} | config)) as bus:
        yield bus


async def until(holds: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def shared_cluster(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer, redis_program: str
) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster"), program=redis_program) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RedisCluster) -> RedisCluster:
    shared_cluster.ask("FLUSHALL")
    return shared_cluster


def stream_on(cluster: RedisCluster, node: int) -> str:
    """Return the name of a stream whose messages a node holds."""
    return next(name for n in range(100) if key_slot((name := f"{STREAM}.{n}").encode()) in cluster.slots_of(node))


@pytest.mark.slow
async def test_streams_on_every_node_carry_messages_and_dead_letters_lie_beside_their_stream(
    cluster: RedisCluster,
) -> None:
    names = [stream_on(cluster, node) for node in range(2)]
    async with bus_at(cluster.url) as bus:
        for name in names:
            reader, undertaker = Reader(failures=3), Reader()
            async with Reading(bus, reader, stream=name), Reading(bus, undertaker, stream=f"{name}.dead"):
                for n in range(2):
                    await bus.publish(name, {"n": n})
                await reader.wait_for(4)
                await undertaker.wait_for(1)
            assert reader.numbers == [0, 0, 0, 1]
        await bus.create_topic("made")
        assert await bus.streams() == sorted(["made", *names, *(f"{name}.dead" for name in names)])


@pytest.mark.slow
async def test_a_stream_that_moves_to_another_node_loses_nothing(cluster: RedisCluster) -> None:
    name, reader = stream_on(cluster, 0), Reader()
    slot, (source, target) = key_slot(name.encode()), cluster.nodes
    names = [node.ask("CLUSTER MYID").split()[1].decode() for node in cluster.nodes]
    async with bus_at(cluster.url) as bus, Reading(bus, reader, stream=name):
        for n in range(5):
            await bus.publish(name, {"n": n})
        await reader.wait_for(5)
        publishing = asyncio.create_task(_publish(bus, name, range(5, 40)))
        target.ask(f"CLUSTER SETSLOT {slot} IMPORTING {names[0]}")
        source.ask(f"CLUSTER SETSLOT {slot} MIGRATING {names[1]}")
        await asyncio.sleep(0.05)
        assert source.ask(f"MIGRATE 127.0.0.1 {target.port} {name} 0 2000").startswith(b"+OK")
        await asyncio.sleep(0.05)
        for node in (target, source):
            node.ask(f"CLUSTER SETSLOT {slot} NODE {names[1]}")
        await publishing
        await reader.wait_for(40)
    for node in cluster.nodes:  # back to where the other tests look for it
        node.ask("FLUSHALL")
    source.ask(f"CLUSTER SETSLOT {slot} NODE {names[0]}")
    target.ask(f"CLUSTER SETSLOT {slot} NODE {names[0]}")
    assert list(dict.fromkeys(reader.numbers)) == list(range(40))


async def _publish(bus: RedisBus, stream: str, numbers: range) -> None:
    for n in numbers:
        await bus.publish(stream, {"n": n})
        await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_a_node_that_is_killed_and_comes_again_is_waited_for(cluster: RedisCluster) -> None:
    name, reader = stream_on(cluster, 1), Reader()
    async with bus_at(cluster.url) as bus, Reading(bus, reader, stream=name):
        await bus.publish(name, {"n": 0})
        await reader.wait_for(1)
        cluster.nodes[1].kill()
        publishing = asyncio.create_task(bus.publish(name, {"n": 1}))
        await asyncio.sleep(0.3)
        cluster.nodes[1].start()
        await publishing
        await until(lambda: 1 in reader.numbers)


@pytest.mark.slow
async def test_an_address_of_the_wrong_kind_is_told(cluster: RedisCluster, redis_server: RedisServer) -> None:
    elsewhere = stream_on(cluster, 1)
    async with bus_at(cluster.nodes[0].url) as bus:
        with pytest.raises(ConfigError, match=r"redis\+cluster://"):
            await bus.publish(elsewhere, {"n": 1})
    with pytest.raises(ConfigError, match="no cluster"):
        async with bus_at(f"redis+cluster://127.0.0.1:{redis_server.port}"):
            pass


@contextmanager
def watched(folder: Path, program: str | None) -> Iterator[tuple[RedisServer, RedisServer, RedisSentinel]]:
    """A master, its replica, and the sentinel that watches over them."""
    folders = [folder / name for name in ("master", "replica", "sentinel")]
    for each in folders:
        each.mkdir()
    with RedisServer(folders[0], program=program) as master, RedisServer(folders[1], program=program) as replica:
        replica.ask(f"REPLICAOF 127.0.0.1 {master.port}")
        while b"master_link_status:up" not in replica.ask("INFO replication"):
            pass
        with RedisSentinel(folders[2], master, program=program) as sentinel:
            while b"slaves=1" not in sentinel.ask("INFO sentinel"):
                pass
            yield master, replica, sentinel


@pytest.mark.chaos
@pytest.mark.slow
async def test_after_a_failover_the_bus_goes_on_at_the_new_master(
    tmp_path: Path, redis_server: RedisServer, redis_program: str
) -> None:
    reader = Reader()
    with watched(tmp_path, redis_program) as (master, replica, sentinel):
        async with bus_at(sentinel.url) as bus, Reading(bus, reader):
            for n in range(5):
                await bus.publish(STREAM, {"n": n})
            await reader.wait_for(5)
            await until(lambda: replica.ask(f"XLEN {STREAM}") == b":5\r\n")
            master.freeze()  # connections stay open: nothing but silence tells that it is gone
            for n in range(5, 10):
                await bus.publish(STREAM, {"n": n})
            assert b"role:master" in replica.ask("INFO replication")
            await until(lambda: 9 in reader.numbers)
            master.thaw()
            await bus.publish(STREAM, {"n": 10})
            await until(lambda: 10 in reader.numbers)
    assert list(dict.fromkeys(reader.numbers)) == list(range(11))


async def test_a_server_that_may_not_write_now_is_an_outage_and_no_mistake_of_the_user(
    tmp_path: Path, redis_server: RedisServer, redis_program: str
) -> None:
    reader = Reader()
    with RedisServer(tmp_path, program=redis_program) as server:
        async with bus_at(server.url) as bus, Reading(bus, reader):
            await bus.publish(STREAM, {"n": 0})
            await reader.wait_for(1)
            server.ask("REPLICAOF 127.0.0.1 1")
            publishing = asyncio.create_task(bus.publish(STREAM, {"n": 1}))
            await asyncio.sleep(0.3)
            server.ask("REPLICAOF NO ONE")
            await publishing
            await reader.wait_for(2)
            assert bus.counts()[STREAM, "readers"].outages


async def test_sentinels_that_watch_over_something_else_are_told(
    tmp_path: Path, redis_server: RedisServer, redis_program: str
) -> None:
    with RedisSentinel(tmp_path, redis_server, program=redis_program) as sentinel:
        with pytest.raises(ConfigError, match="no master named other"):
            async with bus_at(f"redis+sentinel://127.0.0.1:{sentinel.port}/other"):
                pass
        two = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/bus"
        async with bus_at(two) as bus:  # the first sentinel does not answer
            assert await bus.publish(STREAM, {"n": 1})


def test_addresses_are_read_into_their_parts(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s:1\n")
    address = read_address(
        f"rediss+sentinel://app:pw@a,[::1]:7/bus/2?ssl_ca_certs=/ca.pem&sentinel_username=watch&sentinel_password_file={tmp_path}/secret"
    )
    assert (address.kind, address.service) == (Kind.SENTINEL, "bus")
    assert address.urls == (
        "rediss://watch:s%3A1@a:26379?ssl_ca_certs=%2Fca.pem",
        "rediss://watch:s%3A1@[::1]:7?ssl_ca_certs=%2Fca.pem",
    )
    assert address.server("10.0.0.1", 6379) == "rediss://app:pw@10.0.0.1:6379/2?ssl_ca_certs=%2Fca.pem"
    assert read_address("redis+cluster://app:pw@a,b:7").urls == ("redis://app:pw@a:6379", "redis://app:pw@b:7")
    assert "pw" not in repr(address)


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://h", "redis+sentinel://h:1", "redis+cluster://h:1/bus", "redis+cluster://"]
)
def test_an_address_that_cannot_be_used_is_refused_with_the_forms_that_can(url: str) -> None:
    with pytest.raises(ConfigError, match="redis\\+sentinel://host"):
        read_address(url)
