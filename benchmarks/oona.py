"""How many messages does the bus carry, in one process and over Redis, and what does it add to what it stands on?"""

import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import cast

from benchmarks.support.bus_jobs import AT_ONCE, LIBRARIES, SIGNALS, Done, Job, done
from benchmarks.support.process import in_process
from benchmarks.support.report import Answer, Target
from esper.testing.servers import RedisServer

RUNS = "benchmarks.support.bus_runs"
UNSYNCED = {"appendonly": "no"}
"""Redis keeps what it holds in memory: its disk is not what is asked about."""
GROWTH_MIB = 4.0
"""Of a process over nine tenths of the messages: what the allocator rounds, and no message more."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: Repetitions; each runs everything once.
        in_memory: Messages through the bus of one process.
        one_by_one: Of them, where each is awaited until the journal holds it.
        numbers: Single messages over Redis.
        slow_numbers: The same for FastStream, whose rate does not depend on their number.
        batches: Batches of health signals over Redis.
        paced: Publishings that are timed one by one.
        endless: Messages over which memory must stay flat.
    """

    rounds: int
    in_memory: int
    one_by_one: int
    numbers: int
    slow_numbers: int
    batches: int
    paced: int
    endless: int


FULL = Size(5, 200_000, 20_000, 100_000, 20_000, 2_000, 10_000, 1_000_000)
QUICK = Size(1, 20_000, 1_000, 10_000, 2_000, 200, 500, 20_000)


def answer(*, quick: bool, seed: int) -> Answer:
    """Let messages pass through each bus from the publisher to the reader's acknowledgement."""
    size = QUICK if quick else FULL
    peers = f"redis-py {version('redis')} and FastStream {version('faststream')}"
    result = Answer(
        method=f"medians of {size.rounds} rounds. In one process: a publisher and a member of a group in one event loop; each "
        "message is checked, sealed, held, decoded, handled and acknowledged. Over Redis: its own server (no AOF), a sender "
        f"and a reader in processes of their own, at most {AT_ONCE} messages per command; health: {SIGNALS} signals in a "
        f"message, decoded to HealthSignal. {peers} do the same job in the same round; redis-py sends header and body, too, "
        "packed as one field. "
        "Rates are of wall time; cpu: processor time of sender and reader without Redis, which a busy machine moves less. "
        "p50, p99: of single awaited calls, one each millisecond"
    )
    _in_memory(result, size)
    with tempfile.TemporaryDirectory(prefix="esper-oona-") as folder, RedisServer(Path(folder), UNSYNCED) as server:
        _over_redis(result, size, server)
        _publishing(result, size, server)
        _memory(result, size, server)
    return result


def _in_memory(result: Answer, size: Size) -> None:
    queued = cast("float", in_process(f"{RUNS}:queue_per_s", messages=size.in_memory))
    result.baselines["asyncio_queue_per_s"] = queued
    for name, journaled in (("memory", False), ("journaled", True)):
        for how in ("many", "batcher", "one"):
            messages = size.one_by_one if journaled and how == "one" else size.in_memory
            found = [_run(messages, how, journaled) for _ in range(size.rounds)]
            for figure in ("per_s", "per_cpu_s"):
                result.metrics[f"{name}_{how}_{figure}"] = median(run[figure] for run in found)
    result.ratios["memory_many_over_asyncio_queue"] = result.metrics["memory_many_per_s"] / queued
    for name, bar in (("memory_many_per_s", 500_000.0), ("journaled_many_per_s", 100_000.0)):
        result.targets.append(Target(name, ">=", bar, result.metrics[name]))


def _run(messages: int, how: str, journaled: bool) -> dict[str, float]:
    found = in_process(f"{RUNS}:in_memory", messages=messages, how=how, journaled=journaled)
    return cast("dict[str, float]", found)


def _over_redis(result: Answer, size: Size, server: RedisServer) -> None:
    rates: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for kind, health in (("numbers", False), ("health", True)):
        rounds: dict[str, list[tuple[int, Done]]] = {library: [] for library in LIBRARIES}
        for _ in range(size.rounds):
            for library in LIBRARIES:
                few = size.slow_numbers if library == "faststream" else size.numbers
                messages = size.batches if health else few
                server.ask("FLUSHALL")
                rounds[library].append((messages, done(library, Job(server.url, messages, health))))
        for library, runs in rounds.items():
            rates[f"{kind}.{library}"] = median(messages / run.wall_s for messages, run in runs)
            cpu[f"{kind}.{library}"] = median(run.cpu_s / messages * 1e6 for messages, run in runs)
            held = result.metrics if library == "esper" else result.baselines
            held[f"{kind}_{library}_messages_per_s"] = rates[f"{kind}.{library}"]
            held[f"{kind}_{library}_cpu_us"] = cpu[f"{kind}.{library}"]
        for peer in LIBRARIES[1:]:
            result.ratios[f"{kind}_over_{peer}"] = rates[f"{kind}.esper"] / rates[f"{kind}.{peer}"]
            result.ratios[f"{kind}_over_{peer}_by_cpu"] = cpu[f"{kind}.{peer}"] / cpu[f"{kind}.esper"]
    result.metrics["health_signals_per_s"] = rates["health.esper"] * SIGNALS
    for name, bar in (("health_signals_per_s", 100_000.0), ("numbers_esper_messages_per_s", 25_000.0)):
        result.targets.append(Target(name, ">=", bar, result.metrics[name]))
    for name, bar in (("numbers_over_redis_py", 0.8), ("health_over_redis_py", 0.8), ("numbers_over_faststream", 5.0)):
        result.targets.append(Target(name, ">=", bar, result.ratios[name]))


def _publishing(result: Answer, size: Size, server: RedisServer) -> None:
    server.ask("FLUSHALL")
    for library, figures in cast(
        "dict[str, dict[str, float]]", in_process(f"{RUNS}:publish_times", url=server.url, messages=size.paced)
    ).items():
        held = result.metrics if library == "esper" else result.baselines
        held |= {f"publish_{library}_{name}": value for name, value in figures.items()}
    for name, bar in (("publish_esper_p50_ms", 0.15), ("publish_esper_p99_ms", 1.0)):
        result.targets.append(Target(name, "<=", bar, result.metrics[name]))


def _memory(result: Answer, size: Size, server: RedisServer) -> None:
    server.ask("FLUSHALL")
    over_redis = done("esper", Job(server.url, size.endless, health=False))
    result.metrics["growth_redis_reader_mib"] = over_redis.reader_late_mib - over_redis.reader_early_mib
    for name, journaled in (("memory", False), ("journaled", True)):
        run = _run(size.endless, "many", journaled)
        result.metrics[f"growth_{name}_mib"] = run["late_mib"] - run["early_mib"]
    for name in ("growth_redis_reader_mib", "growth_memory_mib", "growth_journaled_mib"):
        result.targets.append(Target(name, "<=", GROWTH_MIB, result.metrics[name]))
