"""The store's database: connections, transactions, and its first tables."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import aiosqlite
from sqlalchemy import Column, Connection, MetaData, String, Table, event, inspect, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from esper.errors import ConfigError, Conflict, StoreUnavailable
from esper.services.urza.models import Base

Result = TypeVar("Result")

REVISION = "0001"
"""Newest migration in ``migrations/versions``; a test holds the two together."""

BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for another process; a transaction here takes milliseconds."""

_WRITING = "esper_writing"
_OPENING_TRIES = 40
_TRANSACTION_TRIES = 5
# The system's own: the global generator belongs to the training that may run in this process.
_DICE = random.SystemRandom()

# The table that Alembic keeps its place in, so that a deployment can go on from an embedded library.
_VERSIONS = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True, nullable=False))


class Database:
    """Transactions on one engine.

    Args:
        source: An engine, or a factory of sessions.
    """

    def __init__(self, source: AsyncEngine | async_sessionmaker[AsyncSession]) -> None:
        if isinstance(source, AsyncEngine):
            source = async_sessionmaker(source, expire_on_commit=False)
        self._sessions = source

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Open a session that sees one state of the database.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        async with _translated(), self._sessions() as session:
            yield session

    async def transact(self, work: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
        """Run work that inserts what somebody else may be inserting too; it is run again where they were first.

        Once begun it runs to its end, even where the caller is cancelled: a statement cut short would keep the write lock.

        Raises:
            Conflict: If somebody else is always first.
            StoreUnavailable: If the database does not answer.
        """
        whole = asyncio.ensure_future(self._transacted(work))
        try:
            return await asyncio.shield(whole)
        except asyncio.CancelledError:
            await asyncio.wait({whole})
            if not whole.cancelled():
                whole.exception()  # nobody is left to hear of it
            raise

    async def _transacted(self, work: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
        for _ in range(_TRANSACTION_TRIES):
            try:
                async with self.writing() as session:
                    return await work(session)
            except IntegrityError as error:
                cause = error
        raise Conflict("the library's row was taken by others again and again", why=str(cause.orig)) from cause

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that is committed as a whole, or not at all where the block raises.

        On SQLite it takes the write lock at once: one that began by reading could lose what it read to get it.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        async with _translated(), self._sessions() as session, session.begin():
            await session.connection(execution_options={_WRITING: True})
            yield session


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Turn an outage of the database into an error of this library; broken constraints are the caller's business."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise StoreUnavailable(
            "the library's database does not answer", why=str(error.orig), todo="look whether its disk is full or gone"
        ) from error


def sqlite_engine(path: Path) -> AsyncEngine:
    """Return an engine on a SQLite file, with foreign keys, a busy timeout and explicit transactions.

    Args:
        path: The file; it is made by `prepare`.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    event.listen(engine.sync_engine, "connect", _configure)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


async def prepare(engine: AsyncEngine) -> None:
    """Make the tables where there are none, and see that those that there are fit this library.

    Raises:
        ConfigError: If another version of the library made them.
        StoreUnavailable: If the database does not answer.
    """
    async with _translated():
        await _switch_to_wal(engine)
        writing = engine.execution_options(**{_WRITING: True})
        async with writing.begin() as connection:
            await connection.run_sync(_create_or_check)


def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # The driver would begin transactions on its own, and always without the write lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys = ON")
    # In WAL mode NORMAL can lose the newest transactions in a power cut, but never corrupts; FULL keeps them too.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


async def _switch_to_wal(engine: AsyncEngine) -> None:
    """Let readers and a writer work side by side; the switch itself ignores the busy timeout, so it is tried again."""
    if engine.dialect.name != "sqlite":
        return
    for attempt in range(_OPENING_TRIES):
        try:
            async with engine.connect() as connection:
                raw = await connection.get_raw_connection()
                driver = cast(aiosqlite.Connection, raw.driver_connection)
                async with driver.execute("PRAGMA journal_mode = WAL"):
                    return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == _OPENING_TRIES - 1:
                raise StoreUnavailable("the library's database cannot be opened", why=str(error)) from error
            await asyncio.sleep(_DICE.uniform(0.01, 0.1))


def _create_or_check(connection: Connection) -> None:
    if not inspect(connection).has_table(_VERSIONS.name):
        Base.metadata.create_all(connection)
        _VERSIONS.create(connection)
        connection.execute(_VERSIONS.insert().values(version_num=REVISION))
        return
    found = connection.scalar(select(_VERSIONS.c.version_num))
    if found != REVISION:
        raise ConfigError(
            "this library cannot be opened",
            why=f"its tables have revision {found}, and this version of Esper knows {REVISION}",
            todo="open it with the version of Esper that made it, or migrate it with Alembic",
            code="ESP-2320",
        )
