"""What does a question to the artifact store cost in PostgreSQL, and how does that grow with the library?"""

import asyncio
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from benchmarks.support.explained import Heard, cost_ms, whole_reads
from benchmarks.support.report import Answer, Target
from benchmarks.support.urza_library import CHAIN, SETTINGS, fill, questions
from esper.contracts.store import BlueprintQuery, KernelQuery
from esper.ir import digest_of
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.database import engine_at, prepare
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.postgres import PostgresServer

P50_MS, P99_MS, LINEAGE_MS, GROWTH = 2.0, 5.0, 2.0, 1.5
PAGE = 50
LARGE = ("kernels", "kernel_terms", "blueprints", "blueprint_terms", "blueprint_pairs")


_BY_KEY = "SELECT * FROM kernels WHERE id = $1"
"""The least that a server can be asked: one row by its key."""


@dataclass
class Costs:
    """What questions cost in the server, in milliseconds: planning and execution of every statement of each.

    Attributes:
        by_kind: As the store asks them: prepared, and planned once for each connection.
        in_order: The same, question by question.
        rows: Kernels that each question found, up to a page.
        scans: Large tables that were read from end to end.
        wall_ms: From the call of the manager to its answer.
        anew_ms: Were each planned anew.
        blueprints_ms: Of searches of blueprints by the same tags and names, in rising order.
        lineage_ms: Of the longest line.
        key_ms: Of one row by its key.
    """

    by_kind: dict[str, list[float]] = field(default_factory=dict)
    in_order: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    anew_ms: list[float] = field(default_factory=list)
    blueprints_ms: list[float] = field(default_factory=list)
    lineage_ms: list[float] = field(default_factory=list)
    key_ms: list[float] = field(default_factory=list)

    @property
    def all_ms(self) -> list[float]:
        """Every question's cost, in rising order."""
        return sorted(cost for costs in self.by_kind.values() for cost in costs)


def answer(*, quick: bool, seed: int) -> Answer:
    """Fill libraries of rising size, ask each the same kinds of questions, and let the server say what they took."""
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    count, rounds = (150, 2) if quick else (600, 3)
    result = Answer(
        method=f"planning and execution time of every statement of a search, by EXPLAIN ANALYZE of the statements that the "
        f"manager sends, prepared as it prepares them (planned once for each connection), caches warm; {count} questions of 15 "
        f"kinds, each the least of {rounds} rounds, percentiles over questions; beside them one row read by its key; "
        f"kernels {', '.join(f'{size:,}' for size in sizes)}, a tenth as many blueprints; pages of 50"
    )
    found = {}
    with PostgresServer(SETTINGS) as server, TemporaryDirectory() as folder:
        for size in sizes:
            found[size] = asyncio.run(_measured(server, Path(folder), size, count, rounds, seed, result))
    for size, costs in found.items():
        _tell(result, size, costs)
    _judge(result, found[sizes[0]], found[sizes[-1]])
    return result


async def _measured(
    server: PostgresServer, folder: Path, size: int, count: int, rounds: int, seed: int, result: Answer
) -> Costs:
    name = server.new_database()
    engine = engine_at(server.url(name), connections=1)
    await prepare(engine)
    began = perf_counter()
    await asyncio.to_thread(fill, server, name, size, size // 10)
    result.metrics[f"fill_s_at_{size}"] = perf_counter() - began
    costs = Costs()
    library = KernelManager(engine, LocalBlobs(folder))
    heard = Heard(engine, library.database)
    for kind, query in questions(seed, count):
        await _timed_search(library, query)  # the first brings pages into memory
        costs.wall_ms.append(min([await _timed_search(library, query) for _ in range(rounds)]))
        async with heard.listening() as statements:
            costs.rows.append(len((await library.search(query)).kernels))
        plans = [await heard.plans(statements) for _ in range(rounds + 1)]
        costs.in_order.append(min(sum(map(cost_ms, plan)) for plan in plans))
        costs.by_kind.setdefault(kind, []).append(costs.in_order[-1])
        costs.anew_ms.append(min([sum(map(cost_ms, await heard.plans(statements, anew=True))) for _ in range(rounds)]))
        costs.scans += [f"{kind}: {table}" for plan in plans[0] for table in whole_reads(plan, LARGE)]
    costs.blueprints_ms = sorted([
        await _of_blueprints(library, heard, query, rounds, costs) for _, query in questions(seed, count // 4)
    ])  # fmt: skip
    youngest = digest_of(f"k{CHAIN - 1}".encode())
    for _ in range(20):
        async with heard.listening() as statements:
            line = await library.get_kernel_lineage(youngest)
        assert len(line) == CHAIN, len(line)
        costs.lineage_ms.append(sum(map(cost_ms, await heard.plans(statements, anew=True))))
        costs.key_ms += map(cost_ms, await heard.plans([(_BY_KEY, (youngest,))]))
    await heard.close()
    await library.close()
    await engine.dispose()
    return costs


async def _of_blueprints(library: KernelManager, heard: Heard, query: KernelQuery, rounds: int, costs: Costs) -> float:
    """Return what a search of blueprints costs by the tags and the name of a search of kernels."""
    async with heard.listening() as statements:
        await library.search_blueprints(BlueprintQuery(tags=query.tags, match=query.match, name=query.name))
    plans = [await heard.plans(statements) for _ in range(rounds + 1)]
    costs.scans += [f"blueprints: {table}" for plan in plans[0] for table in whole_reads(plan, LARGE)]
    return min(sum(map(cost_ms, plan)) for plan in plans)


async def _timed_search(library: KernelManager, query: KernelQuery) -> float:
    began = perf_counter()
    await library.search(query)
    return (perf_counter() - began) * 1e3


def _tell(result: Answer, size: int, costs: Costs) -> None:
    every = costs.all_ms
    for name, share in (("p50", 0.50), ("p90", 0.90), ("p99", 0.99)):
        result.metrics[f"search_{name}_ms_at_{size}"] = _percentile(every, share)
        result.metrics[f"search_planned_anew_{name}_ms_at_{size}"] = _percentile(sorted(costs.anew_ms), share)
        result.metrics[f"search_wall_{name}_ms_at_{size}"] = _percentile(sorted(costs.wall_ms), share)
        result.metrics[f"blueprints_{name}_ms_at_{size}"] = _percentile(costs.blueprints_ms, share)
    result.metrics[f"search_mean_ms_at_{size}"] = statistics.fmean(every)
    result.metrics[f"kernels_per_page_at_{size}"] = statistics.fmean(costs.rows)
    result.metrics[f"us_per_kernel_found_at_{size}"] = 1e3 * sum(every) / sum(costs.rows)
    result.metrics[f"lineage_{CHAIN}_deep_p50_ms_at_{size}"] = statistics.median(costs.lineage_ms)
    result.baselines[f"one_row_by_key_p50_ms_at_{size}"] = statistics.median(costs.key_ms)
    result.metrics[f"tables_read_whole_at_{size}"] = len(costs.scans)
    for kind, found in costs.by_kind.items():
        name = kind.replace(" ", "_")
        result.metrics[f"{name}_mean_ms_at_{size}"] = statistics.fmean(found)
        result.metrics[f"{name}_worst_ms_at_{size}"] = max(found)


def _judge(result: Answer, smallest: Costs, largest: Costs) -> None:
    every = largest.all_ms
    growth = statistics.fmean(every) / statistics.fmean(smallest.all_ms)
    result.ratios["mean_cost_of_the_largest_over_the_smallest"] = growth
    both_full = [number for number, rows in enumerate(smallest.rows) if min(rows, largest.rows[number]) == PAGE]
    grown, before = (statistics.fmean(costs.in_order[number] for number in both_full) for costs in (largest, smallest))
    result.ratios["the_same_where_both_pages_are_full"] = grown / before
    result.metrics["questions_whose_pages_are_full_in_both"] = len(both_full)
    result.targets += [
        Target("search_p50_ms", "<=", P50_MS, _percentile(every, 0.50)),
        Target("search_p99_ms", "<=", P99_MS, _percentile(every, 0.99)),
        Target("blueprints_p50_ms", "<=", P50_MS, _percentile(largest.blueprints_ms, 0.50)),
        Target("blueprints_p99_ms", "<=", P99_MS, _percentile(largest.blueprints_ms, 0.99)),
        Target(f"lineage_{CHAIN}_deep_ms", "<=", LINEAGE_MS, statistics.median(largest.lineage_ms)),
        Target("large_tables_read_whole", "==", 0, len(largest.scans)),
        Target("growth_of_the_mean_cost", "<=", GROWTH, growth),
    ]


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
