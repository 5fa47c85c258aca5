"""Questions to SQLite through a connection beside the one that writes."""

import asyncio
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Integer, bindparam, func, select, text

from esper.errors import ConfigError, ContractError
from esper.services.urza.database import Database, engine_at, prepare, sqlite_engine
from esper.services.urza.pages import Found
from esper.services.urza.sqlite_thread import SqliteReader


@dataclass(frozen=True)
class Doubled:
    """Asks for twice a number."""

    def statement(self, *, arrays: bool) -> Found:
        return select(2 * bindparam("number", type_=Integer))


@dataclass(frozen=True)
class Counted:
    """Asks how many numbers there are."""

    def statement(self, *, arrays: bool) -> Found:
        return select(func.count()).select_from(text("numbers"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "numbers.db"
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE numbers (number INTEGER)")
    connection.close()
    return file


async def test_it_sees_what_was_committed_before_and_waits_for_no_writer(file: Path) -> None:
    reader = SqliteReader(sqlite_engine(file).url)
    writer = sqlite3.connect(file, isolation_level=None)
    for number in range(20):
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO numbers VALUES (?)", (number,))
        assert (await reader.rows(Counted(), {}))[0][0] == number
        writer.execute("COMMIT")
        assert (await reader.rows(Counted(), {}))[0][0] == number + 1
    writer.close()
    await reader.close()


async def test_a_question_that_nobody_waits_for_any_more_leaves_the_next_ones_their_answers(file: Path) -> None:
    reader = SqliteReader(sqlite_engine(file).url)
    given_up = [asyncio.ensure_future(reader.rows(Doubled(), {"number": number})) for number in range(50)]
    await asyncio.sleep(0)
    for one in given_up:
        one.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    assert [(await reader.rows(Doubled(), {"number": number}))[0][0] for number in range(9)] == list(range(0, 18, 2))
    await reader.close()


async def test_closed_it_holds_the_file_no_more_and_may_be_asked_again(file: Path) -> None:
    reader = SqliteReader(sqlite_engine(file).url)
    await reader.rows(Counted(), {})
    assert file.with_name("numbers.db-shm").exists()
    await reader.close()
    await reader.close()
    assert not file.with_name("numbers.db-shm").exists(), "the last connection takes the log along"
    assert (await reader.rows(Doubled(), {"number": 4}))[0][0] == 8
    await reader.close()


async def test_a_number_that_sqlite_does_not_hold_is_a_fault_of_the_data(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "library.db")
    await prepare(engine)
    database = Database(engine)
    with pytest.raises(ContractError):
        await database.rows(Doubled(), {"number": 2**80})
    assert (await database.rows(Doubled(), {"number": 21}))[0][0] == 42
    await database.close()
    await engine.dispose()


def test_a_database_that_lives_within_one_connection_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        engine_at("sqlite:///:memory:")
