"""The schema that a library makes for itself, and the one that Alembic makes, are the same."""

import asyncio
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from functools import reduce
from importlib.resources import files
from itertools import combinations
from operator import or_
from pathlib import Path
from typing import TypeVar

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, Table, TextClause, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from esper.errors import ConfigError
from esper.services.urza.base import Base
from esper.services.urza.database import REVISION, prepare, sqlite_engine
from esper.services.urza.terms import bits_of
from esper.testing.postgres import PostgresServer

Result = TypeVar("Result")

INI = files("esper.services.urza") / "migrations" / "alembic.ini"


def config(path: Path, *, scheme: str = "sqlite", output: io.StringIO | None = None) -> Config:
    found = Config(str(INI), output_buffer=output) if output else Config(str(INI))
    found.set_main_option("sqlalchemy.url", f"{scheme}:///{path}")
    return found


def schema(path: Path) -> dict[tuple[str, str], object]:
    """Return what made a database, without Alembic's own table, whose key it names its own way.

    What a table is made of is compared without its order, which altering a table changes.
    """
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {
        (kind, name): sorted(parts(sql)) if kind == "table" else " ".join(sql.split())
        for kind, name, sql in rows
        if name not in ("alembic_version", "sqlite_sequence")
    }


def parts(sql: str) -> list[str]:
    """Return the columns and constraints of a table, each as text."""
    body, found, depth = " ".join(sql.partition("(")[2].rpartition(")")[0].split()), [""], 0
    for letter in body:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [part.strip() for part in found]


def prepared(path: Path) -> Path:
    async def made() -> None:
        engine = sqlite_engine(path)
        try:
            await prepare(engine)
        finally:
            await engine.dispose()

    asyncio.run(made())
    return path


@pytest.fixture
def migrated(tmp_path: Path) -> Path:
    command.upgrade(config(tmp_path / "migrated.db"), "head")
    return tmp_path / "migrated.db"


@pytest.fixture
def connection(migrated: Path) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{migrated}")
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def test_migrating_an_empty_file_makes_the_tables_that_a_library_makes_itself(migrated: Path, tmp_path: Path) -> None:
    own = schema(prepared(tmp_path / "own.db"))
    assert schema(migrated) == own
    assert {name for kind, name in own if kind == "table"} == set(Base.metadata.tables)


def test_the_models_ask_for_nothing_that_the_migrations_did_not_make(connection: Connection) -> None:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    assert compare_metadata(context, Base.metadata) == []


def test_a_column_that_no_migration_makes_is_noticed(connection: Connection) -> None:
    changed = Base.metadata.tables["outbox"].to_metadata(grown := type(Base.metadata)())
    assert isinstance(changed, Table)
    changed.append_column(Column("planted", Integer))
    context = MigrationContext.configure(
        connection, opts={"include_name": lambda name, kind, _: name == "outbox" or kind != "table"}
    )
    assert [change[0] for change in compare_metadata(context, grown)] == ["add_column"]


def test_the_revision_that_a_new_library_is_stamped_with_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(Config(str(INI))).get_heads() == [REVISION]


def test_alembic_goes_on_from_a_library_that_made_itself(tmp_path: Path) -> None:
    path = prepared(tmp_path / "own.db")
    before = schema(path)
    command.upgrade(config(path), "head")
    assert schema(path) == before
    command.downgrade(config(path), "base")
    assert schema(path) == {}


def test_a_library_opens_what_was_migrated(migrated: Path) -> None:
    before = schema(migrated)
    assert schema(prepared(migrated)) == before


def test_a_library_of_another_revision_is_refused_with_both_revisions(migrated: Path) -> None:
    engine = create_engine(f"sqlite:///{migrated}")
    with engine.begin() as opened:
        opened.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(ConfigError, match=f"0999.*{REVISION}") as refused:
        prepared(migrated)
    assert refused.value.code == "ESP-2320"


def test_going_down_and_up_again_ends_where_it_began(migrated: Path) -> None:
    before = schema(migrated)
    command.downgrade(config(migrated), "base")
    assert schema(migrated) == {}
    command.upgrade(config(migrated), "head")
    assert schema(migrated) == before


def test_a_driver_that_waits_migrates_the_same(migrated: Path, tmp_path: Path) -> None:
    command.upgrade(config(tmp_path / "waiting.db", scheme="sqlite+aiosqlite"), "head")
    assert schema(tmp_path / "waiting.db") == schema(migrated)


def test_the_sql_can_be_had_without_a_database(tmp_path: Path) -> None:
    output = io.StringIO()
    command.upgrade(config(tmp_path / "none.db", scheme="postgresql+asyncpg", output=output), "head", sql=True)
    assert "CREATE TABLE compile_jobs" in output.getvalue()
    assert not list(tmp_path.iterdir())


def test_without_a_database_the_command_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match="-x url=") as refused:
        command.upgrade(Config(str(INI)), "head")
    assert refused.value.code == "ESP-2330"


# -- both databases, with data in them ---------------------------------------------------------------------------------


async def run(url: str, work: Callable[[Connection], Result]) -> Result:
    """Do something with a connection of an engine that knows nothing of the store."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as opened:
            return await opened.run_sync(work)
    finally:
        await engine.dispose()


async def migrated_to(url: str, revision: str) -> None:
    def moved(opened: Connection) -> None:
        found = Config(str(INI))
        found.attributes["connection"] = opened
        current = MigrationContext.configure(opened).get_current_revision() or ""
        (command.downgrade if revision == "base" or revision < current else command.upgrade)(found, revision)

    await run(url, moved)


def structure(opened: Connection) -> dict[str, object]:
    """Return what the tables of a database are made of, as its own catalogue tells it."""
    looked = inspect(opened)
    found: dict[str, object] = {}
    for table in looked.get_table_names():
        columns = [
            (
                column["name"],
                str(column["type"]),
                column["nullable"],
                str(column.get("computed", {}).get("sqltext", "")),
            )
            for column in looked.get_columns(table)
        ]
        found[table] = (
            sorted(columns),
            looked.get_pk_constraint(table)["constrained_columns"],
            sorted((str(key["constrained_columns"]), str(key["referred_table"]), str(key["options"]))
                   for key in looked.get_foreign_keys(table)),
            sorted(str(index["column_names"]) for index in looked.get_indexes(table)),
        )  # fmt: skip
    question = (
        "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
        if opened.dialect.name == "postgresql"
        else "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    )
    found["triggers"] = sorted(opened.scalars(text(question)))
    return {name: value for name, value in found.items() if name != "alembic_version"}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the address of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.new_database()
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def prepared_url(request: pytest.FixtureRequest, empty_url: str, tmp_path: Path) -> str:
    """Return the address of a database that a library made, of the same kind."""
    if empty_url.startswith("sqlite"):
        return f"sqlite+aiosqlite:///{prepared(tmp_path / 'prepared.db')}"
    return str(request.getfixturevalue("postgres_url"))


def old_library(opened: Connection) -> None:
    """Fill the first tables: two blueprints of one line, three kernels of which one was not measured."""
    now = "'2026-01-02 03:04:05'"
    for key, name, parent in (("sha256:a", "Gated Convolution", "NULL"), ("sha256:b", "gated-conv v2", "'sha256:a'")):
        opened.execute(text(
            "INSERT INTO blueprints (id, name, architecture_ir, status, version, parent_id, submitted_by, metadata,"
            f" created_at, updated_at) VALUES ('{key}', '{name}', '{{}}', 'validated', 1, {parent}, 'me', '{{}}', {now}, {now})"
        ))  # fmt: skip
    opened.execute(
        text("INSERT INTO blueprint_tags VALUES ('sha256:a', 'conv'), ('sha256:a', 'fast'), ('sha256:b', 'conv')")
    )
    for key, of, throughput in (("sha256:1", "a", "5.5"), ("sha256:2", "a", "NULL"), ("sha256:3", "b", "9.0")):
        opened.execute(text(
            "INSERT INTO kernels VALUES "
            f"('{key}', 'sha256:{of}', '{key}', 10, 'validated', 1.0, 'cpu', 'O0', 't', true,"
            """ '{"latency_p50_ms"\\: 0.25, "params"\\: 7}', true, '{"throughput_per_s"\\: 5.5}',"""
            f" {throughput}, {now})"
        ))  # fmt: skip
        opened.execute(text(f"INSERT INTO validation_reports VALUES ('{key}', true, '{{}}', {now})"))


def content(opened: Connection) -> dict[str, list[tuple[object, ...]]]:
    tables = ("blueprints", "blueprint_tags", "kernels", "validation_reports")
    return {
        table: sorted(map(tuple, opened.execute(text(f"SELECT * FROM {table}"))), key=str) for table in tables
    }  # fmt: skip


async def test_an_old_library_with_data_goes_up_and_down_again_and_loses_nothing(empty_url: str) -> None:
    await migrated_to(empty_url, "0001")
    first = await run(empty_url, structure)
    await run(empty_url, old_library)
    before = await run(empty_url, content)
    await migrated_to(empty_url, "0002")

    def looked(opened: Connection) -> list[list[tuple[object, ...]]]:
        questions = (
            "SELECT kernel_id, tag, status, rank FROM kernel_tags ORDER BY kernel_id, tag",
            "SELECT id, rank, latency_ms, num_params FROM kernels ORDER BY rank, id",
            "SELECT word, blueprint_id FROM blueprint_words ORDER BY word, blueprint_id",
            "SELECT digest, size_bytes FROM blobs ORDER BY digest",
            "SELECT kernel_id, metric, value FROM benchmark_results ORDER BY kernel_id",
        )
        return [[tuple(row) for row in opened.execute(text(question))] for question in questions]

    tags, kernels, words, blobs, figures = await run(empty_url, looked)
    assert tags == [
        ("sha256:1", "conv", "validated", -5.5), ("sha256:1", "fast", "validated", -5.5),
        ("sha256:2", "conv", "validated", 1.0), ("sha256:2", "fast", "validated", 1.0),
        ("sha256:3", "conv", "validated", -9.0),
    ]  # fmt: skip
    assert kernels == [("sha256:3", -9.0, 0.25, 7), ("sha256:1", -5.5, 0.25, 7), ("sha256:2", 1.0, 0.25, 7)]
    assert [word for word, _ in words] == ["conv", "convolution", "gated", "gated", "v2"]
    assert blobs == [("sha256:1", 10), ("sha256:2", 10), ("sha256:3", 10)]
    assert figures == [(f"sha256:{n}", "throughput_per_s", 5.5) for n in (1, 2, 3)]
    await migrated_to(empty_url, "0001")
    assert await run(empty_url, content) == before
    assert await run(empty_url, structure) == first


async def test_jobs_and_forms_go_up_and_down_again(empty_url: str) -> None:
    """What builds stays what it is; what finishes is no build, and an older library would take it for one."""
    older = ScriptDirectory.from_config(Config(str(INI))).get_revision("0004").down_revision
    assert isinstance(older, str)
    await migrated_to(empty_url, "0001")
    await run(empty_url, old_library)
    await migrated_to(empty_url, older)
    first = await run(empty_url, structure)
    columns = "id, blueprint_id, build_key, build, priority, status, attempts, deaths, queued_at, reason"

    def job(name: str, extra: str = "", value: str = "") -> TextClause:
        return text(
            f"INSERT INTO compile_jobs ({columns}{extra})"
            f" VALUES ('{name}', 'sha256:a', '{name}', '{{}}', 5, 'queued', 0, 0, 1.0, ''{value})"
        )

    await run(empty_url, lambda opened: opened.execute(job("old")))
    await migrated_to(empty_url, "0004")
    moment = "'2026-01-02 03:04:05'"

    def filled(opened: Connection) -> list[tuple[object, ...]]:
        opened.execute(job("later", ", phase, kernel_id", ", 'finish', 'sha256:1'"))
        opened.execute(text(
            "INSERT INTO inference_forms (kernel_id, backend, device, torch, level, digest, size_bytes, seal, content,"
            f" created_at) VALUES ('sha256:1', 'onnx', 'cpu', '2', 'O3', 'sha256:2', 10, '', '{{}}', {moment})"
        ))  # fmt: skip
        return [tuple(row) for row in opened.execute(text("SELECT id, phase FROM compile_jobs ORDER BY id"))]

    assert await run(empty_url, filled) == [("later", "finish"), ("old", "build")]
    await migrated_to(empty_url, older)
    assert await run(empty_url, structure) == first
    left = await run(empty_url, lambda opened: list(opened.scalars(text("SELECT id FROM compile_jobs"))))
    assert left == ["old"]


async def test_tags_and_words_become_terms_and_are_taken_apart_again(empty_url: str) -> None:
    await migrated_to(empty_url, "0001")
    await run(empty_url, old_library)
    await migrated_to(empty_url, "0002")
    first = await run(empty_url, structure)

    def old(opened: Connection) -> list[list[tuple[object, ...]]]:
        tables = ("blueprints", "kernels", "blueprint_tags", "blueprint_words", "kernel_tags")
        return [sorted(map(tuple, opened.execute(text(f"SELECT * FROM {table}"))), key=str) for table in tables]

    def new(opened: Connection) -> list[list[tuple[object, ...]]]:
        questions = (
            "SELECT blueprint_id, term, bits FROM blueprint_terms",
            "SELECT id, signature FROM blueprints",
            "SELECT blueprint_id, first, second FROM blueprint_pairs",
            "SELECT kernel_id, term, rank, signature FROM kernel_terms",
            "SELECT id, CAST(tags AS TEXT) FROM kernels",
        )
        return [sorted(map(tuple, opened.execute(text(question))), key=str) for question in questions]

    before = await run(empty_url, old)
    await migrated_to(empty_url, "0003")
    terms, signatures, pairs, kernels, tags = await run(empty_url, new)
    of = {"sha256:a": ("#conv", "#fast", "convolution", "gated"), "sha256:b": ("#conv", "conv", "gated", "v2")}
    assert terms == [(key, term, bits_of(term)) for key, found in of.items() for term in found]
    signed = {key: reduce(or_, map(bits_of, found)) for key, found in of.items()}
    assert signatures == list(signed.items())
    assert pairs == [(key, *pair) for key, found in of.items() for pair in combinations(found, 2)]
    made_of = (("sha256:1", "sha256:a", -5.5), ("sha256:2", "sha256:a", 1.0), ("sha256:3", "sha256:b", -9.0))
    assert kernels == [(key, term, rank, signed[b]) for key, b, rank in made_of for term in of[b]]
    assert [(key, json.loads(str(found))) for key, found in tags] == [
        ("sha256:1", ["conv", "fast"]), ("sha256:2", ["conv", "fast"]), ("sha256:3", ["conv"]),
    ]  # fmt: skip
    await migrated_to(empty_url, "0002")
    assert await run(empty_url, old) == before
    assert await run(empty_url, structure) == first


async def test_announcements_go_on_after_their_numbers_outgrew_32_bits(empty_url: str) -> None:
    last = 2**31 - 1
    await migrated_to(empty_url, "0005")
    first = await run(empty_url, structure)

    def at_the_end(opened: Connection) -> None:
        opened.execute(text(
            f"INSERT INTO outbox (id, stream, content, created_at) VALUES ({last}, 's', '', '2026-01-02 03:04:05')"
        ))  # fmt: skip
        if opened.dialect.name == "postgresql":
            opened.execute(text(f"SELECT setval('outbox_id_seq', {last})"))

    def announced(opened: Connection) -> list[int]:
        opened.execute(text("INSERT INTO outbox (stream, content, created_at) VALUES ('s', '', '2026-01-02 03:04:05')"))
        return list(opened.scalars(text("SELECT id FROM outbox ORDER BY id")))

    await run(empty_url, at_the_end)
    await migrated_to(empty_url, "0006")
    assert await run(empty_url, announced) == [last, last + 1]
    if not empty_url.startswith("sqlite"):
        with pytest.raises(DBAPIError, match="out of range"):
            await migrated_to(empty_url, "0005")
    await run(empty_url, lambda opened: opened.execute(text("DELETE FROM outbox")))
    await migrated_to(empty_url, "0005")
    assert await run(empty_url, structure) == first


async def test_migrating_makes_what_a_library_makes_itself_on_either_database(
    empty_url: str, prepared_url: str
) -> None:
    await migrated_to(empty_url, REVISION)
    assert await run(empty_url, structure) == await run(prepared_url, structure)

    def changes(opened: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(opened, opts={"compare_type": True}), Base.metadata))

    assert await run(empty_url, changes) == []
    await migrated_to(empty_url, "base")
    assert await run(empty_url, structure) == {"triggers": []}
