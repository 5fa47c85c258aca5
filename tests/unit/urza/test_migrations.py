"""The schema that a library makes for itself, and the one that Alembic makes, are the same."""

import asyncio
import io
import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Integer, Table, create_engine, text

from esper.errors import ConfigError
from esper.services.urza.database import REVISION, prepare, sqlite_engine
from esper.services.urza.models import Base

INI = files("esper.services.urza") / "migrations" / "alembic.ini"


def config(path: Path, *, scheme: str = "sqlite", output: io.StringIO | None = None) -> Config:
    found = Config(str(INI), output_buffer=output) if output else Config(str(INI))
    found.set_main_option("sqlalchemy.url", f"{scheme}:///{path}")
    return found


def schema(path: Path) -> dict[tuple[str, str], str]:
    """Return the statements that made a database, without Alembic's own table, whose key it names its own way."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {(kind, name): " ".join(sql.split()) for kind, name, sql in rows if name != "alembic_version"}


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
