"""How many messages does the in-process bus carry, with and without its journal?"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.support.report import Answer, Target
from esper.ports import Delivery
from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.services.oona.micro_batch import MicroBatchConfig, MicroBatcher

MEMORY_GOAL, JOURNAL_GOAL = 500_000.0, 100_000.0
LIMIT_S = 600.0
STREAM = "benchmark.numbers"


@dataclass(frozen=True)
class Rates:
    """Messages per second.

    Attributes:
        published: From the first message given to the last future done, with nobody reading.
        delivered: From the first message read to the last acknowledgement kept, by one member.
    """

    published: float
    delivered: float


def answer(*, quick: bool, seed: int) -> Answer:
    """Publish many messages through a micro-batcher, then let one member read them all."""
    messages, rounds = (20_000, 1) if quick else (200_000, 5)
    result = Answer(
        method=f"best of {rounds} rounds of {messages} dictionaries of one number, in batches of 1,000 with a future each; "
        "then one member reads and acknowledges all; one event loop"
    )
    for name, journaled in (("memory", False), ("journaled", True)):
        found = [asyncio.run(_round(messages, journaled)) for _ in range(rounds)]
        result.metrics[f"{name}_published_per_s"] = max(rates.published for rates in found)
        result.metrics[f"{name}_delivered_per_s"] = max(rates.delivered for rates in found)
    queued = asyncio.run(_queue(messages))
    result.baselines["asyncio_queue_per_s"] = queued
    result.ratios["memory_over_asyncio_queue"] = result.metrics["memory_published_per_s"] / queued
    for name, goal in (("memory_published_per_s", MEMORY_GOAL), ("journaled_published_per_s", JOURNAL_GOAL)):
        result.targets.append(Target(name, ">=", goal, result.metrics[name]))
    return result


async def _round(messages: int, journaled: bool) -> Rates:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "bus.journal") if journaled else None
        async with MemoryBus(MemoryBusConfig(max_length=messages), journal=journal) as bus:
            published = await _published(bus, messages)
            return Rates(published, await _delivered(bus, messages))


async def _published(bus: MemoryBus, messages: int) -> float:
    start = perf_counter()
    async with MicroBatcher(bus, MicroBatchConfig(max_messages=1_000)) as batcher:
        sent = [await batcher.add(STREAM, {"n": n}) for n in range(messages)]
    taken = perf_counter() - start
    for future in sent:
        future.result()
    return messages / taken


async def _delivered(bus: MemoryBus, messages: int) -> float:
    count, every = 0, asyncio.Event()

    async def note(_: Delivery) -> None:
        nonlocal count
        count += 1
        if count == messages:
            every.set()

    start = perf_counter()
    reading = asyncio.ensure_future(bus.subscribe(STREAM, "readers", note, start_from="0"))
    await every.wait()
    if not await bus.drain(limit_s=LIMIT_S):
        raise RuntimeError("acknowledgements are missing")
    taken = perf_counter() - start
    await bus.close()
    await reading
    return messages / taken


async def _queue(messages: int) -> float:
    """Return how many numbers go through a bare queue of asyncio, uncoded and unacknowledged."""
    queue: asyncio.Queue[dict[str, int]] = asyncio.Queue()
    start = perf_counter()
    for n in range(messages):
        queue.put_nowait({"n": n})
    for _ in range(messages):
        await queue.get()
    return messages / (perf_counter() - start)
