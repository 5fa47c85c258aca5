"""A library of any size in PostgreSQL, filled by the server itself, and what people ask of it."""

import json
import random
from collections.abc import Iterator

from esper.contracts.kernel import KernelStatus
from esper.contracts.store import KernelQuery, Match
from esper.testing.forging import adapter
from esper.testing.postgres import PostgresServer

TAGS = 2_000
"""Their use falls as one over their rank: the commonest is on two blueprints in five, the rarest on one in five thousand."""
FAMILIES = 8
"""Tags of which every blueprint has one, so that no kernel has two: the hardest question for whoever expects chance."""
CHAIN = 50
"""Length of the longest line of blueprints."""
FIRST = ("gated", "fused", "sparse", "deep", "wide", "residual", "grouped", "dilated")
SECOND = ("convolution", "attention", "perceptron", "adapter", "normalisation", "bottleneck", "mixer", "gate")
DEVICES = ("cpu", "cuda:0", "cuda:1")

SETTINGS = {
    "shared_buffers": "2GB", "max_wal_size": "8GB", "maintenance_work_mem": "512MB", "random_page_cost": "1.1",
    "synchronous_commit": "off", "jit": "off", "effective_cache_size": "6GB",
}  # fmt: skip


def _digest(kind: str, number: str) -> str:
    return f"'sha256:' || encode(sha256(('{kind}' || {number})::bytea), 'hex')"


def fill(server: PostgresServer, database: str, kernels: int, blueprints: int) -> None:
    """Fill an empty library; triggers rest meanwhile, and what they keep is filled as they would."""
    ir = json.dumps(adapter(32, 64).to_json()).replace("'", "''")
    first, second = (f"(ARRAY{list(words)})" for words in (FIRST, SECOND))
    status = "CASE WHEN u < 0.90 THEN 'validated' WHEN u < 0.96 THEN 'rejected' WHEN u < 0.99 THEN 'pending_validation'"
    statements = [
        "SET session_replication_role = replica",
        "SELECT setseed(0.5)",
        f"""INSERT INTO blueprints (id, name, architecture_ir, status, version, parent_id, submitted_by, metadata,
            created_at, updated_at) SELECT {_digest("b", "i")},
            {first}[1 + i % 8] || ' ' || {second}[1 + i / 8 % 8] || ' ' || i / 64, '{ir}', 'validated', 1,
            CASE WHEN i BETWEEN 2 AND {CHAIN} THEN {_digest("b", "(i - 1)")}
                 WHEN i > {CHAIN} AND i % 2 = 0 THEN {_digest("b", "(i / 2 + 1)")} END,
            'benchmark', '{{}}', now(), now() FROM generate_series(1, {blueprints}) AS i""",
        """INSERT INTO blueprint_words SELECT id, word FROM blueprints, regexp_split_to_table(name, ' ') AS word""",
        f"""INSERT INTO blueprint_tags SELECT DISTINCT {_digest("b", "i")}, 't' || floor({TAGS} ^ random())::int
            FROM generate_series(1, {blueprints}) AS i, generate_series(1, 3)""",
        f"""INSERT INTO blueprint_tags SELECT {_digest("b", "i")}, 'family' || i % {FAMILIES}
            FROM generate_series(1, {blueprints}) AS i""",
        f"""INSERT INTO blobs SELECT {_digest("k", "i")}, 4096, 0 FROM generate_series(1, {kernels}) AS i""",
        f"""INSERT INTO kernels (id, blueprint_id, kernel_binary_ref, size_bytes, status, compilation_time_ms,
            target_device, optimization_level, compiler_version, validation_passed, validation_metrics,
            safety_checks_passed, benchmark_results, throughput, created_at, updated_at, latency_ms, num_params)
            SELECT {_digest("k", "i")}, {_digest("b", f"(1 + i % {blueprints})")}, {_digest("k", "i")},
            (4096 * exp(6 * v))::bigint, {status} ELSE 'retired' END, 20,
            CASE WHEN v < 0.7 THEN 'cpu' WHEN v < 0.95 THEN 'cuda:0' ELSE 'cuda:1' END, 'O1', 'benchmark',
            u < 0.90, '{{"params": 1024.0, "latency_p50_ms": 0.5, "max_error": 1e-7}}', true,
            '{{"throughput_per_s": 1000.0}}', CASE WHEN w < 0.95 THEN 1000 * exp(4 * w - 2 * v) END, now(), now(),
            CASE WHEN w < 0.95 THEN 8 / exp(4 * w - 2 * v) END, CASE WHEN x < 0.98 THEN 1024 ELSE 0 END
            FROM (SELECT i, random() AS u, random() AS v, random() AS w, random() AS x
                  FROM generate_series(1, {kernels}) AS i) AS drawn""",
        """INSERT INTO kernel_tags (kernel_id, tag, status, rank, target_device, latency_ms, size_bytes, num_params)
            SELECT k.id, t.tag, k.status, k.rank, k.target_device, k.latency_ms, k.size_bytes, k.num_params
            FROM kernels AS k JOIN blueprint_tags AS t ON t.blueprint_id = k.blueprint_id""",
        "SET session_replication_role = origin",
    ]
    server.run(";\n".join(statements), database)
    server.run("VACUUM ANALYZE", database)


def questions(seed: int, count: int) -> Iterator[tuple[str, KernelQuery]]:
    """Draw what people ask: the kind of question, and the question."""
    dice = random.Random(seed)

    def tag() -> str:
        return f"t{int(TAGS ** dice.random())}"

    validated = KernelStatus.VALIDATED
    kinds = {
        "one tag": lambda: {"tags": [tag()], "status": validated},
        "any status": lambda: {"tags": [tag()]},
        "any of three tags": lambda: {"tags": [tag(), tag(), tag()], "status": validated},
        "all of two tags": lambda: {"tags": [tag(), tag()], "match": Match.ALL, "status": validated},
        "all of three tags": lambda: {"tags": [tag(), tag(), f"family{dice.randrange(FAMILIES)}"], "match": Match.ALL},
        "two families": lambda: {
            "tags": [f"family{n}" for n in dice.sample(range(FAMILIES), 2)], "match": Match.ALL, "status": validated,
        },
        "everything": lambda: {"status": validated},
        "device": lambda: {"status": validated, "device": dice.choice(DEVICES), "tags": [f"t{dice.randint(1, 20)}"]},
        "fast enough": lambda: {"status": validated, "tags": [tag()], "min_performance": 1000 * dice.uniform(1, 40)},
        "latency": lambda: {"status": validated, "max_latency_ms": dice.uniform(0.2, 8), "tags": [f"t{dice.randint(1, 20)}"]},
        "small": lambda: {"status": validated, "max_memory_mb": dice.uniform(0.01, 1), "tags": [f"t{dice.randint(1, 20)}"]},
        "with parameters": lambda: {"status": validated, "has_params": True, "tags": [tag()]},
        "two words": lambda: {"status": validated, "name": f"{dice.choice(FIRST)[:4]} {dice.choice(SECOND)}"},
        "a name": lambda: {"name": f"{dice.choice(FIRST)} {dice.randrange(1_500)}"},
        "word and tag": lambda: {"status": validated, "name": dice.choice(SECOND)[:5], "tags": [tag()]},
    }  # fmt: skip
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        yield kind, KernelQuery.model_validate(kinds[kind]())
