"""A library of any size in PostgreSQL, filled by the server itself, and what people ask of it."""

import json
import random
from collections.abc import Iterator

from esper.contracts.kernel import KernelStatus
from esper.contracts.store import KernelQuery, Match
from esper.services.urza.terms import SQL_BITS
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
        f"""INSERT INTO blueprint_terms (blueprint_id, term)
            SELECT id, word FROM blueprints, regexp_split_to_table(name, ' ') AS word
            UNION SELECT {_digest("b", "i")}, '#t' || floor({TAGS} ^ random())::int
            FROM generate_series(1, {blueprints}) AS i, generate_series(1, 3)
            UNION SELECT {_digest("b", "i")}, '#family' || i % {FAMILIES} FROM generate_series(1, {blueprints}) AS i""",
        f"""UPDATE blueprint_terms SET bits = {SQL_BITS.format(term="term")}""",
        """UPDATE blueprints SET signature = found.bits FROM
            (SELECT blueprint_id, bit_or(bits) AS bits FROM blueprint_terms GROUP BY blueprint_id) AS found
            WHERE found.blueprint_id = blueprints.id""",
        """INSERT INTO blueprint_pairs (blueprint_id, first, second) SELECT a.blueprint_id, a.term, b.term
            FROM blueprint_terms AS a JOIN blueprint_terms AS b ON a.blueprint_id = b.blueprint_id AND a.term < b.term""",
        f"""INSERT INTO blobs SELECT {_digest("k", "i")}, 4096, 0 FROM generate_series(1, {kernels}) AS i""",
        f"""INSERT INTO kernels (id, blueprint_id, kernel_binary_ref, size_bytes, status, compilation_time_ms,
            target_device, optimization_level, compiler_version, validation_passed, validation_metrics,
            safety_checks_passed, benchmark_results, throughput, created_at, updated_at, latency_ms, num_params, tags)
            SELECT {_digest("k", "i")}, {_digest("b", f"(1 + i % {blueprints})")}, {_digest("k", "i")},
            (4096 * exp(6 * v))::bigint, {status} ELSE 'retired' END, 20,
            CASE WHEN v < 0.7 THEN 'cpu' WHEN v < 0.95 THEN 'cuda:0' ELSE 'cuda:1' END, 'O1', 'benchmark',
            u < 0.90, '{{"params": 1024.0, "latency_p50_ms": 0.5, "max_error": 1e-7}}', true,
            '{{"throughput_per_s": 1000.0}}', CASE WHEN w < 0.95 THEN 1000 * exp(4 * w - 2 * v) END, now(), now(),
            CASE WHEN w < 0.95 THEN 8 / exp(4 * w - 2 * v) END, CASE WHEN x < 0.98 THEN 1024 ELSE 0 END, tags
            FROM (SELECT i, random() AS u, random() AS v, random() AS w, random() AS x
                  FROM generate_series(1, {kernels}) AS i) AS drawn
            JOIN (SELECT blueprint_id, json_agg(substr(term, 2) ORDER BY term) AS tags FROM blueprint_terms
                  WHERE term < '$' GROUP BY blueprint_id) AS tagged
            ON tagged.blueprint_id = {_digest("b", f"(1 + i % {blueprints})")}""",
        """INSERT INTO kernel_terms (kernel_id, term, status, rank, target_device, latency_ms, size_bytes, num_params,
            signature) SELECT k.id, t.term, k.status, k.rank, k.target_device, k.latency_ms, k.size_bytes, k.num_params,
            b.signature FROM kernels AS k JOIN blueprints AS b ON b.id = k.blueprint_id
            JOIN blueprint_terms AS t ON t.blueprint_id = k.blueprint_id""",
        "SET session_replication_role = origin",
    ]
    without, again = _indexes(server, database)
    server.run(";\n".join([*without, *statements, *again]), database)
    server.run("VACUUM ANALYZE", database)


def _indexes(server: PostgresServer, database: str) -> tuple[list[str], list[str]]:
    """Return statements that take the indexes of the largest tables away, and that make them: sorted at once, not row by row."""
    tables = ", ".join(f"'{name}'" for name in ("kernel_terms", "blueprint_pairs"))
    keys = server.run(
        "SELECT format('ALTER TABLE %1$s DROP CONSTRAINT %2$s|ALTER TABLE %1$s ADD %3$s', conrelid::regclass, conname,"
        f" pg_get_constraintdef(oid)) FROM pg_constraint WHERE contype = 'p' AND conrelid::regclass::text IN ({tables})",
        database,
    )
    others = server.run(
        "SELECT format('DROP INDEX %s|%s', indexname, indexdef) FROM pg_indexes"
        f" WHERE (tablename IN ({tables}) OR tablename = 'kernels') AND indexname LIKE 'ix_%'",
        database,
    )
    found = [line.split("|") for line in (keys + "\n" + others).splitlines()]
    return [drop for drop, _ in found], [make for _, make in found]


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
