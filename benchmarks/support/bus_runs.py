"""Measurements of a bus within one process; each is called in a process of its own."""

import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time

import msgspec
from redis.asyncio import Redis

from benchmarks.support.bus_jobs import GROUP, NUMBERS, resident_mib
from esper.ports import Delivery
from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.services.oona.micro_batch import MicroBatchConfig, MicroBatcher
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig

BATCH = 1_000
"""Messages given to the in-process bus at once."""
LIMIT_S = 600.0
PER_S = 1_000
"""Messages a second whose publishing is timed one by one."""


def in_memory(*, messages: int, how: str, journaled: bool) -> dict[str, float]:
    """Publish to the in-process bus while one member reads, decodes and acknowledges, all in one event loop.

    Args:
        messages: How many.
        how: ``one`` by one, ``many`` at once, or through a ``batcher`` with a future for each.
        journaled: Whether the bus has a journal.

    Returns:
        Messages per second of wall and of processor time, and the memory after a tenth and after all.
    """
    return asyncio.run(_in_memory(messages, how, journaled))


async def _in_memory(messages: int, how: str, journaled: bool) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        journal = Journal(Path(folder) / "bus.journal") if journaled else None
        config = MemoryBusConfig(max_length=messages // 20)  # full long before a tenth has passed
        bus = await stack.enter_async_context(MemoryBus(config, journal=journal))
        count, early_mib, every = 0, 0.0, asyncio.Event()

        async def note(_: Delivery) -> None:
            nonlocal count, early_mib
            count += 1
            if count == messages // 10:
                early_mib = resident_mib()
            if count == messages:
                every.set()

        reading = asyncio.create_task(bus.subscribe(NUMBERS, GROUP, note, start_from="0"))
        await asyncio.sleep(0)
        start, start_cpu = perf_counter(), process_time()
        await _PUBLISHERS[how](bus, messages)
        await every.wait()
        if not await bus.drain(limit_s=LIMIT_S):
            raise RuntimeError("acknowledgements are missing")
        taken, cpu = perf_counter() - start, process_time() - start_cpu
        late_mib = resident_mib()
        await bus.close()
        await reading
    return {"per_s": messages / taken, "per_cpu_s": messages / cpu, "early_mib": early_mib, "late_mib": late_mib}


async def _one(bus: MemoryBus, messages: int) -> None:
    for n in range(messages):
        await bus.publish(NUMBERS, {"n": n})


async def _many(bus: MemoryBus, messages: int) -> None:
    for start in range(0, messages, BATCH):
        await bus.publish_many(NUMBERS, [{"n": n} for n in range(start, start + BATCH)])


async def _batcher(bus: MemoryBus, messages: int) -> None:
    async with MicroBatcher(bus, MicroBatchConfig(max_messages=BATCH)) as batcher:
        for n in range(messages):
            last = await batcher.add(NUMBERS, {"n": n})
    last.result()


_PUBLISHERS: dict[str, Callable[[MemoryBus, int], Awaitable[None]]] = {"one": _one, "many": _many, "batcher": _batcher}


def queue_per_s(*, messages: int) -> float:
    """Return how many numbers go through a bare queue of asyncio, uncoded and unacknowledged."""
    return asyncio.run(_queue(messages))


async def _queue(messages: int) -> float:
    queue: asyncio.Queue[dict[str, int]] = asyncio.Queue()
    start = perf_counter()
    for n in range(messages):
        queue.put_nowait({"n": n})
    for _ in range(messages):
        await queue.get()
    return messages / (perf_counter() - start)


def publish_times(*, url: str, messages: int) -> dict[str, dict[str, float]]:
    """Publish one message a millisecond, each awaited, over Redis; once with Esper, once with bare redis-py.

    Returns:
        For each median and 99th percentile of the time a call takes, and processor time per message, pacing included.
    """
    return asyncio.run(_publish_times(url, messages))


async def _publish_times(url: str, messages: int) -> dict[str, dict[str, float]]:
    encode = msgspec.msgpack.Encoder().encode
    async with RedisBus(RedisBusConfig(url=url)) as bus, Redis.from_url(url, protocol=2) as client:

        async def esper(n: int) -> None:
            await bus.publish(NUMBERS, {"n": n})

        async def redis_py(n: int) -> None:
            await client.xadd(NUMBERS, {"body": encode({"n": n})}, maxlen=10_000, approximate=True)

        return {"esper": await _paced(esper, messages), "redis_py": await _paced(redis_py, messages)}


async def _paced(publish: Callable[[int], Awaitable[None]], messages: int) -> dict[str, float]:
    for n in range(PER_S // 10):
        await publish(n)
    times, start, start_cpu = [], perf_counter(), process_time()
    for n in range(messages):
        await asyncio.sleep(max(0.0, start + n / PER_S - perf_counter()))
        before = perf_counter()
        await publish(n)
        times.append((perf_counter() - before) * 1e3)
    cpu_ms = (process_time() - start_cpu) * 1e3 / messages
    hundredths = statistics.quantiles(times, n=100)
    return {"p50_ms": hundredths[49], "p99_ms": hundredths[98], "cpu_ms": cpu_ms}
