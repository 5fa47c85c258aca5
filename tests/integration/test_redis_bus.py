"""The bus on a real Redis, when things go wrong."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from esper.contracts.envelope import DeadLetter
from esper.errors import BusUnavailable, ConfigError
from esper.ports import Delivery
from esper.services.oona.codec import Codec
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_entry import GroupCounts
from esper.services.oona.redis_fields import key_of, stream_of, to_fields
from esper.services.oona.redis_link import Link
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisServer


@asynccontextmanager
async def bus_on(server: RedisServer, **limits: object) -> AsyncIterator[RedisBus]:
    config = {"claim_idle_s": 0.4, "block_s": 0.05, "reply_limit_s": 0.5, "publish_limit_s": 5.0} | limits
    async with RedisBus(RedisBusConfig.model_validate({"url": server.url} | config)) as bus:
        yield bus


def counted(bus: RedisBus) -> GroupCounts:
    return bus.counts().get((STREAM, "readers"), GroupCounts())


async def until(holds: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[Link]:
    link = Link(redis_server.url, 2.0)
    yield link
    await link.close()


async def held_by(link: Link, member: str, numbers: list[int], group: str = "readers") -> None:
    """Let a member take messages and be seen no more."""
    await link.ask("XGROUP", "CREATE", STREAM, group, "0", "MKSTREAM")
    codec = Codec()
    for n in numbers:
        await link.ask("XADD", STREAM, "*", *to_fields(codec.seal(STREAM, {"n": n})))
    await link.ask("XREADGROUP", "GROUP", group, member, "COUNT", len(numbers), "STREAMS", STREAM, ">")


async def pending(link: Link, group: str = "readers") -> int:
    found = await link.ask("XPENDING", STREAM, group)
    assert isinstance(found, list)
    return int(found[0])


async def test_messages_of_a_dead_member_go_to_another_in_order_and_as_redelivered(
    redis_server: RedisServer, link: Link
) -> None:
    await held_by(link, "dead", [1, 2, 3])
    reader = Reader()
    async with bus_on(redis_server) as bus, Reading(bus, reader):
        deliveries = await reader.wait_for(3)
        counts = counted(bus)
    assert reader.numbers == [1, 2, 3]
    assert all(delivery.redelivered for delivery in deliveries)
    assert counts.claimed == 3
    assert await pending(link) == 0


async def test_a_process_that_starts_again_under_its_name_begins_with_what_it_held(
    redis_server: RedisServer, link: Link
) -> None:
    await held_by(link, "worker.0", [1, 2])
    reader = Reader()
    async with bus_on(redis_server, name="worker", claim_idle_s=600) as bus:
        await bus.publish(STREAM, {"n": 3})
        async with Reading(bus, reader):
            await reader.wait_for(3)
    assert reader.numbers == [1, 2, 3]


async def test_a_long_handler_keeps_its_message_while_others_look_for_work(redis_server: RedisServer) -> None:
    calls: list[Delivery] = []

    async def long(delivery: Delivery) -> None:
        calls.append(delivery)
        await asyncio.sleep(1.2)

    async with bus_on(redis_server) as first, bus_on(redis_server) as second:
        async with Reading(first, long), Reading(second, long):
            await first.publish(STREAM, {"n": 0})
            await until(lambda: sum(counted(bus).handled for bus in (first, second)) == 1)
        assert sum(counted(bus).claimed for bus in (first, second)) == 0
    assert len(calls) == 1


async def test_a_message_that_kills_its_process_is_buried_and_those_read_with_it_are_handled(
    redis_server: RedisServer, link: Link
) -> None:
    await held_by(link, "worker.0", [0, 1])
    for _ in range(2):  # it was handed out again by itself, as a restarted process does, and killed each of them
        ids = await link.ask("XPENDING", STREAM, "readers", "-", "+", 1)
        assert isinstance(ids, list)
        await link.ask("XCLAIM", STREAM, "readers", "worker.0", 0, ids[0][0])
    reader, undertaker = Reader(), Reader()
    async with (
        bus_on(redis_server, name="worker") as bus,
        Reading(bus, reader),
        Reading(bus, undertaker, stream=f"{STREAM}.dead"),
    ):
        await reader.wait_for(1)
        (burial,) = await undertaker.wait_for(1)
    assert reader.numbers == [1]
    assert isinstance(burial.body, DeadLetter)
    assert burial.body.tries == 3
    assert "no member that had it lived" in burial.body.reason


async def test_a_handled_message_is_acknowledged_while_the_next_one_is_worked_on(
    redis_server: RedisServer, link: Link
) -> None:
    ending = asyncio.Event()

    async def second_is_slow(delivery: Delivery) -> None:
        if delivery.body == {"n": 1}:
            await ending.wait()

    async with bus_on(redis_server) as bus:
        await bus.publish(STREAM, {"n": 0})
        await bus.publish(STREAM, {"n": 1})
        async with Reading(bus, second_is_slow):
            await until(lambda: counted(bus).handled == 1)
            assert await pending(link) == 1
            ending.set()


@pytest.mark.parametrize("command", ["FLUSHALL", f"XGROUP DESTROY {STREAM} readers"])
async def test_a_group_that_vanished_is_made_again_and_misses_nothing(redis_server: RedisServer, command: str) -> None:
    reader = Reader()
    async with bus_on(redis_server) as bus, Reading(bus, reader):
        await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(1)
        redis_server.ask(command)
        for n in range(1, 4):
            await bus.publish(STREAM, {"n": n})
        await until(lambda: 3 in reader.numbers)
        counts = counted(bus)
    assert [n for n in reader.numbers if n != 0] == [1, 2, 3]
    assert counts.regrouped == 1


async def test_a_message_that_was_trimmed_while_it_was_pending_is_counted_and_does_not_stop_the_rest(
    redis_server: RedisServer, link: Link
) -> None:
    await held_by(link, "worker.0", [1, 2])
    await link.ask("XTRIM", STREAM, "MAXLEN", 1)
    reader = Reader()
    async with bus_on(redis_server, name="worker") as bus, Reading(bus, reader):
        await reader.wait_for(1)
        assert bus.losses == {(STREAM, "readers"): 1}
        await until(lambda: counted(bus).lost == 1)
    assert reader.numbers == [2]


async def test_a_message_that_was_trimmed_while_it_was_worked_on_is_tried_again_and_buried(
    redis_server: RedisServer, link: Link
) -> None:
    calls = 0

    async def fails_late(_: Delivery) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await link.ask("XTRIM", STREAM, "MAXLEN", 0)
            await asyncio.sleep(0.5)  # its lease is renewed meanwhile
        raise RuntimeError("planted")

    undertaker = Reader()
    async with (
        bus_on(redis_server, claim_idle_s=0.9) as bus,
        Reading(bus, fails_late),
        Reading(bus, undertaker, stream=f"{STREAM}.dead"),
    ):
        await bus.publish(STREAM, {"n": 0})
        (burial,) = await undertaker.wait_for(1)
    assert isinstance(burial.body, DeadLetter)
    assert (calls, burial.body.tries) == (3, 3)


async def test_an_entry_that_is_no_message_is_buried_as_it_was_found(redis_server: RedisServer, link: Link) -> None:
    reader, undertaker = Reader(), Reader()
    async with bus_on(redis_server) as bus, Reading(bus, reader), Reading(bus, undertaker, stream=f"{STREAM}.dead"):
        await link.ask("XADD", STREAM, "*", "_init", "true")
        await bus.publish(STREAM, {"n": 1})
        await reader.wait_for(1)
        (burial,) = await undertaker.wait_for(1)
    assert isinstance(burial.body, DeadLetter)
    assert "lacks type" in burial.body.reason
    assert b"_init" in burial.body.envelope.body


async def test_no_more_handlers_run_at_once_than_were_allowed(redis_server: RedisServer) -> None:
    running, most, done = 0, 0, 0
    all_at_once = asyncio.Event()

    async def watched(_: Delivery) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        if running == 4:
            all_at_once.set()
        await all_at_once.wait()
        await asyncio.sleep(0.005)
        running -= 1
        done += 1

    async with bus_on(redis_server, concurrency=4, batch=2) as bus, Reading(bus, watched):
        for n in range(40):
            await bus.publish(STREAM, {"n": n})
        await until(lambda: done == 40)
    assert most == 4


async def test_close_gives_back_what_was_read_and_not_begun(redis_server: RedisServer, link: Link) -> None:
    began = asyncio.Event()

    async def slow(_: Delivery) -> None:
        began.set()
        await asyncio.sleep(0.1)

    async with bus_on(redis_server, claim_idle_s=600) as bus:
        for n in range(5):
            await bus.publish(STREAM, {"n": n})
        subscription = asyncio.create_task(bus.subscribe(STREAM, "readers", slow, start_from="0"))
        await began.wait()
        await bus.close()
        await subscription
    reader = Reader()
    async with bus_on(redis_server, claim_idle_s=600) as other, Reading(other, reader):
        deliveries = await reader.wait_for(4)
    assert reader.numbers == [1, 2, 3, 4]
    assert not any(delivery.redelivered for delivery in deliveries)
    assert await pending(link) == 0


async def test_a_cancellation_is_never_swallowed(link: Link) -> None:
    """redis-py on Python 3.11 swallows one that comes while a command is sent, where a socket timeout is set."""

    ended = asyncio.Event()

    async def ask_for_ever() -> None:
        while not ended.is_set():
            await link.ask("PING")

    await link.ask("PING")
    swallowed = 0
    for n in range(60):
        task = asyncio.create_task(ask_for_ever())
        for _ in range(n % 30):
            await asyncio.sleep(0)
        task.cancel()
        _, going_on = await asyncio.wait([task], timeout=0.1)
        swallowed += len(going_on)
        ended.set()
        await asyncio.wait([task])
        ended.clear()
    assert swallowed == 0


async def test_a_cancelled_subscription_ends_every_time(redis_server: RedisServer) -> None:
    async with bus_on(redis_server, block_s=1.0) as bus:
        tasks = []
        for n in range(30):
            tasks.append(asyncio.create_task(bus.subscribe(f"{STREAM}.{n}", "readers", Reader())))
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
            await asyncio.sleep(0)
        ended, going_on = await asyncio.wait(tasks, timeout=2.0)
    assert not going_on
    assert all(task.cancelled() for task in ended)


async def test_a_cancelled_command_leaves_no_answer_for_the_next(link: Link) -> None:
    for n in range(30):
        waiting = asyncio.create_task(link.ask("BLPOP", "nothing", 0, wait_s=5))
        echo = asyncio.create_task(link.ask("ECHO", str(n)))
        await asyncio.sleep(0.002)
        waiting.cancel()
        assert await echo == str(n).encode()
        assert await link.ask("ECHO", f"next {n}") == f"next {n}".encode()
        assert (await asyncio.gather(waiting, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_a_frozen_server_is_an_outage_and_the_bus_goes_on_after_it(redis_server: RedisServer) -> None:
    reader = Reader()
    async with bus_on(redis_server, publish_limit_s=0.6) as bus, Reading(bus, reader):
        await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(1)
        redis_server.freeze()
        try:
            with pytest.raises(BusUnavailable, match="does not answer"):
                await bus.publish(STREAM, {"n": 1})
            await until(lambda: counted(bus).outages > 1)
        finally:
            redis_server.thaw()
        await bus.publish(STREAM, {"n": 2})
        await until(lambda: 2 in reader.numbers)
    assert not counted(bus).dead


async def test_a_killed_server_loses_nothing_that_was_published(
    tmp_path: Path, redis_server: RedisServer, redis_program: str
) -> None:
    reader = Reader()
    with RedisServer(tmp_path, program=redis_program) as own:
        async with bus_on(own, publish_limit_s=20.0) as bus, Reading(bus, reader):
            sent = set()
            for n in range(60):
                if n in (20, 40):
                    own.kill()
                    publishing = asyncio.create_task(bus.publish(STREAM, {"n": n}))
                    await asyncio.sleep(0.2)
                    own.start()
                    sent.add(await publishing)
                else:
                    sent.add(await bus.publish(STREAM, {"n": n}))
            await until(lambda: {delivery.id for delivery in reader.deliveries} >= sent)
        first_seen = list(dict.fromkeys(reader.numbers))
    assert first_seen == list(range(60))


async def test_a_bus_says_that_nobody_answers_and_what_was_refused(redis_server: RedisServer) -> None:
    with pytest.raises(BusUnavailable, match="does not answer"):
        async with RedisBus(RedisBusConfig(url="redis://127.0.0.1:1")):
            pass
    with pytest.raises(ConfigError, match="cannot be used"):
        RedisBus(RedisBusConfig(url="localhost:6379"))
    async with bus_on(redis_server) as bus:
        redis_server.ask("SET taken 1")
        with pytest.raises(ConfigError, match="WRONGTYPE"):
            await bus.publish("taken", {"n": 1})
        with pytest.raises(ConfigError, match="WRONGTYPE"):
            await bus.subscribe("taken", "readers", Reader())
        with pytest.raises(ConfigError, match="start_from"):
            await bus.subscribe(STREAM, "readers", Reader(), start_from="$")
    with pytest.raises(BusUnavailable, match="closed"):
        await bus.publish(STREAM, {"n": 1})


@pytest.mark.parametrize(
    ("stream", "key"),
    [("a.b", "a.b"), ("a.b.dead", "{a.b}.dead"), ("{run}.b.dead", "{run}.b.dead"), ("a{}b.dead", "{a{}b}.dead")],
)
def test_dead_letters_share_the_hash_slot_of_their_stream(stream: str, key: str) -> None:
    assert key_of(stream) == key
    assert stream_of(key) == stream
