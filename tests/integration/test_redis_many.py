"""Many messages in few commands, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.contracts.topics import COMPILATIONS
from esper.errors import BusUnavailable, ConfigError, ContractError
from esper.ports import Delivery
from esper.services.oona.micro_batch import MicroBatchConfig, MicroBatcher
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.telemetry.tracing import traced, traceparent
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisServer

SOUND = {"blueprint_id": "sha256:b", "status": "started"}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


fills = pytest.mark.parametrize("fill", ["", "long " * 1000], ids=["short", "long"])
"""Short messages go in one script, long ones in one transaction."""


@pytest.fixture
async def bus(redis_server: RedisServer) -> AsyncIterator[RedisBus]:
    async with RedisBus(
        RedisBusConfig(url=redis_server.url, block_s=0.05, reply_limit_s=5.0, publish_limit_s=2.0)
    ) as bus:
        yield bus


@fills
async def test_messages_of_more_than_one_command_keep_their_order_and_ids(bus: RedisBus, fill: str) -> None:
    reader = Reader()
    async with Reading(bus, reader):
        ids = await bus.publish_many(STREAM, [{"n": n, "fill": fill} for n in range(600)], run_id="run-1")
        await reader.wait_for(600)
    assert reader.numbers == list(range(600))
    assert [delivery.id for delivery in reader.deliveries] == ids
    assert {delivery.run_id for delivery in reader.deliveries} == {"run-1"}
    assert not any(delivery.redelivered for delivery in reader.deliveries)


async def test_each_message_of_a_batch_has_its_own_answer(bus: RedisBus) -> None:
    reader = Reader()
    async with Reading(bus, reader, stream=COMPILATIONS.stream):
        async with MicroBatcher(bus, MicroBatchConfig(max_messages=3, max_wait_s=60)) as batcher:
            sent = [await batcher.add(COMPILATIONS.stream, dict(m)) for m in (SOUND, {"status": "?"}, SOUND)]
        deliveries = await reader.wait_for(2)
    assert [type(future.exception()) for future in sent] == [type(None), ContractError, type(None)]
    assert [delivery.id for delivery in deliveries] == [sent[0].result(), sent[2].result()]


async def test_nothing_of_a_broken_batch_is_published(bus: RedisBus) -> None:
    with pytest.raises(ContractError):
        await bus.publish_many(COMPILATIONS.stream, [SOUND, {"status": "?"}])
    assert COMPILATIONS.stream not in await bus.streams()


@fills
async def test_a_key_that_holds_something_else_is_refused_with_what_redis_says(
    bus: RedisBus, redis_server: RedisServer, fill: str
) -> None:
    redis_server.ask("SET taken 1")
    with pytest.raises(ConfigError, match="WRONGTYPE"):
        await bus.publish_many("taken", [{"n": n, "fill": fill} for n in range(2)])


@fills
async def test_a_server_without_memory_takes_all_of_a_batch_or_nothing(
    bus: RedisBus, redis_server: RedisServer, fill: str
) -> None:
    await bus.publish(STREAM, {"n": 0})
    redis_server.ask("CONFIG SET maxmemory 1")
    try:
        with pytest.raises(BusUnavailable, match="maxmemory"):
            await bus.publish_many(STREAM, [{"n": n, "fill": fill} for n in range(20)])
    finally:
        redis_server.ask("CONFIG SET maxmemory 0")
    assert redis_server.ask(f"XLEN {STREAM}") == b":1\r\n"


@fills
async def test_what_a_batch_trims_before_a_group_saw_it_is_counted(
    bus: RedisBus, redis_server: RedisServer, fill: str
) -> None:
    await bus.create_topic(STREAM, max_length=30)
    redis_server.ask(f"XGROUP CREATE {STREAM} slow $")
    await bus.publish_many(STREAM, [{"n": n, "fill": fill} for n in range(100)])
    assert redis_server.ask(f"XLEN {STREAM}") == b":30\r\n"
    assert bus.losses == {(STREAM, "slow"): 70}


async def test_a_frozen_server_fails_every_message_of_the_batch(tmp_path: Path, redis_program: str) -> None:
    with RedisServer(tmp_path, program=redis_program) as own:
        async with RedisBus(RedisBusConfig(url=own.url, reply_limit_s=0.1, publish_limit_s=0.2)) as bus:
            async with MicroBatcher(bus, MicroBatchConfig(max_messages=4)) as batcher:
                own.freeze()
                sent = [await batcher.add(STREAM, {"n": n}) for n in range(4)]
            assert {type(future.exception()) for future in sent} == {BusUnavailable}
            own.thaw()


@fills
async def test_a_batch_whose_answer_was_lost_is_sent_again_with_the_same_ids(
    tmp_path: Path, redis_program: str, fill: str
) -> None:
    reader = Reader()
    with RedisServer(tmp_path, program=redis_program) as own:
        async with RedisBus(RedisBusConfig(url=own.url, block_s=0.05, reply_limit_s=0.3, publish_limit_s=20)) as bus:
            own.freeze()
            publishing = asyncio.create_task(bus.publish_many(STREAM, [{"n": n, "fill": fill} for n in range(20)]))
            await asyncio.sleep(0.5)  # the first command waits in the frozen server, and is carried out after the thaw
            own.thaw()
            ids = await publishing
            async with Reading(bus, reader), asyncio.timeout(LIMIT_S):
                while {delivery.id for delivery in reader.deliveries} != set(ids):
                    await reader.wait_for(len(reader.deliveries) + 1)
    assert list(dict.fromkeys(delivery.id for delivery in reader.deliveries)) == ids


async def test_the_last_of_a_full_batch_is_acknowledged_while_nothing_follows(
    bus: RedisBus, redis_server: RedisServer
) -> None:
    reader = Reader()
    async with Reading(bus, reader):
        await bus.publish_many(STREAM, [{"n": n} for n in range(128)])
        await reader.wait_for(128)
        for _ in range(500):
            if bus.counts()[STREAM, "readers"].handled == 128:
                break
            await asyncio.sleep(0.01)
        assert redis_server.ask(f"XPENDING {STREAM} readers").startswith(b"*4\r\n:0\r\n")


async def test_a_handler_works_in_the_trace_of_its_message(bus: RedisBus) -> None:
    seen: list[str | None] = []
    both = asyncio.Event()

    async def note(_: Delivery) -> None:
        seen.append(traceparent())
        if len(seen) == 2:
            both.set()

    async with Reading(bus, note), asyncio.timeout(LIMIT_S):
        with traced(TRACE):
            await bus.publish(STREAM, {"n": 0})
        await bus.publish(STREAM, {"n": 1})
        await both.wait()
    assert seen == [TRACE, None]
