"""The store's database: connections, transactions, and its first tables."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

import aiosqlite
from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, event, func, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from esper.errors import ConfigError, Conflict, IllegalTransition, StoreUnavailable
from esper.runtime.waits import uncut
from esper.services.urza import access, models, transitions
from esper.services.urza.audit import note
from esper.services.urza.base import Base
from esper.services.urza.faults import unanswered, unstorable
from esper.services.urza.reader import PostgresReader, Question, Reader, Rows, SessionReader, Values
from esper.services.urza.sqlite_driver import WRITING, OneHopConnection, begin, configure, connected
from esper.services.urza.sqlite_thread import SqliteReader, SqliteWriter
from esper.services.urza.transitions import REFUSAL, UNPROVEN

Result = TypeVar("Result")

REVISION = "0006"
"""Newest migration in ``migrations/versions``; a test holds the two together."""

TURN_TIMEOUT_S = 60.0
"""How long a writer waits for those of its own process that came before it: some hundred transactions."""

CONNECT_TIMEOUT_S, POOL_TIMEOUT_S, STATEMENT_TIMEOUT_S = 5.0, 10.0, 30.0
"""How long PostgreSQL may take to let us in, to have a connection free, and to answer."""

READERS = 4
"""Connections for what is asked again and again, beside those of the engine."""

_opened: WeakKeyDictionary[Engine, WeakSet[OneHopConnection]] = WeakKeyDictionary()
_COMMITTED = "esper_committed"
_MEMORY = (None, "", ":memory:")
"""Names of a SQLite database that lives within one connection: no other sees it."""
_joined: ContextVar[AsyncSession | None] = ContextVar("esper_joined", default=None)
_PREPARING = 0x45535045
"""Number of the lock under which tables are made: two processes may start at once."""
_LOST_RACES = ("40001", "40P01")
"""Serialization failure and deadlock."""
_OPENING_TRIES = 40
_TRANSACTION_TRIES = 5
# The system's own: the global generator belongs to the training that may run in this process.
_DICE = random.SystemRandom()

TABLES = (access, models, transitions)
"""Modules with tables; `Base` knows a table once its module is imported."""

# The table that Alembic keeps its place in, so that a deployment can go on from an embedded library.
_VERSIONS = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True, nullable=False))


class Database:
    """Transactions on one engine.

    Args:
        source: An engine, or a factory of sessions.

    Attributes:
        reader: Asks what is asked again and again.
    """

    def __init__(self, source: AsyncEngine | async_sessionmaker[AsyncSession]) -> None:
        engine = source if isinstance(source, AsyncEngine) else None
        if isinstance(source, AsyncEngine):
            source = async_sessionmaker(source, expire_on_commit=False)
        self._sessions = source
        # SQLite gives its one write lock to whoever happens to ask next; among many, one may never be that.
        bind = source.kw.get("bind")
        is_sqlite = bind is not None and bind.dialect.name == "sqlite"
        self._turn = asyncio.Lock() if is_sqlite else None
        self._writer: SqliteWriter | None = None
        self.reader: Reader = SessionReader(self._sessions)
        if is_sqlite and isinstance(bind, AsyncEngine) and bind.url.database not in _MEMORY:
            self._writer, self.reader = SqliteWriter(bind.url), SqliteReader(bind.url)
        if engine is not None and engine.dialect.name == "postgresql":
            timeouts = CONNECT_TIMEOUT_S, POOL_TIMEOUT_S, STATEMENT_TIMEOUT_S
            self.reader = PostgresReader(engine.url, connections=READERS, timeouts_s=timeouts)

    @property
    def has_one_writer(self) -> bool:
        """Whether transactions that write pass one after the other, as on SQLite."""
        return self._turn is not None

    async def rows(self, question: Question, values: Values) -> Rows:
        """Return what a question finds that is asked again and again, through connections for these alone.

        Within `joined` it is asked in that transaction.

        Raises:
            ContractError: If a value is none that the database can hold.
            StoreUnavailable: If the database does not answer.
        """
        session = _joined.get()
        async with _translated():
            return await (self.reader if session is None else SessionReader(session)).rows(question, values)

    async def close(self) -> None:
        """Close the connections that `rows` and `apply` made."""
        try:
            await self.reader.close()
        finally:
            if self._writer is not None:
                await self._writer.close()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Open a session that sees one state of the database; within `joined` it is that transaction's.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        session = _joined.get()
        async with _translated(), self._sessions() if session is None else nullcontext(session) as session:
            yield session

    async def transact(self, work: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
        """Run work that inserts what somebody else may be inserting too; it is run again where they were first.

        Once begun it runs to its end, even where the caller is cancelled: a statement cut short would keep the write lock.

        Raises:
            Conflict: If somebody else is always first.
            StoreUnavailable: If the database does not answer.
        """

        async def once() -> Result:
            async with self.writing() as session:
                return await work(session)

        return await uncut(_tried(once))

    async def apply(self, work: Callable[[Session], Result]) -> Result:
        """Do the same with work that waits for nothing but its statements.

        On SQLite it runs in a thread, without a way to the event loop and back for each statement.
        """

        async def once() -> Result:
            if self._writer is None or self.is_joined:
                async with self.writing() as session:
                    return await session.run_sync(work)
            async with _translated(), self._in_turn():
                result, calls = await self._writer.run(lambda session: _noted(session, work))
            for call in calls:
                call()
            return result

        return await uncut(_tried(once))

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that is committed as a whole, or not at all where the block raises.

        On SQLite it takes the write lock at once: one that began by reading could lose what it read to get it. Within `joined` it
        is a part of that transaction, which alone is undone where the block raises.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        outer = _joined.get()
        if outer is not None:
            async with _translated(), outer.begin_nested():
                yield outer
                await outer.run_sync(note)
            return
        async with _translated(), self._in_turn(), self._sessions() as session:
            async with session.begin():
                await session.connection(execution_options={WRITING: True})
                yield session
                await session.run_sync(note)
            for call in session.info.pop(_COMMITTED, ()):
                call()

    @property
    def is_joined(self) -> bool:
        """Whether this is within `joined`, so that whatever is written now is a part of a transaction that is open."""
        return _joined.get() is not None

    @staticmethod
    @contextmanager
    def joined(session: AsyncSession) -> Iterator[None]:
        """Let every transaction within the block be a part of one that is open, and be committed with it."""
        token = _joined.set(session)
        try:
            yield
        finally:
            _joined.reset(token)

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """Let writers of this process pass in the order in which they came, where the database has no order."""
        if self._turn is None:
            yield
            return
        async with asyncio.timeout(TURN_TIMEOUT_S):
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Turn an outage of the database into an error of this library; broken constraints are the caller's business."""
    try:
        yield
    except IntegrityError as error:
        if UNPROVEN in str(error.orig):
            raise IllegalTransition(
                "the kernel was not validated", why="it has no passed validation report", todo="validate it first"
            ) from error
        if REFUSAL in str(error.orig):
            raise IllegalTransition(
                "the status was not changed",
                why="the one that was asked for may not follow the present one",
                todo="read the present status, then ask for one that may follow it",
            ) from error
        raise
    except (DBAPIError, PoolTimeoutError, OSError, TimeoutError, UnicodeEncodeError, OverflowError) as error:
        if _is_lost_race(error):
            raise
        if _is_fault_of_the_data(error):
            raise unstorable(error) from error
        raise unanswered(error) from error


async def _tried(once: Callable[[], Awaitable[Result]]) -> Result:
    """Run a transaction, again where somebody else was first."""
    for _ in range(_TRANSACTION_TRIES):
        try:
            return await once()
        except DBAPIError as error:  # what is no outage: somebody inserted the same, or a race was lost
            cause = error
    raise Conflict("the library's row was taken by others again and again", why=str(cause.orig)) from cause


def _noted(session: Session, work: Callable[[Session], Result]) -> tuple[Result, Iterable[Callable[[], None]]]:
    """Do work and note who does it; return its result, and what to call once it is committed."""
    result = work(session)
    session.flush()
    note(session)
    return result, session.info.pop(_COMMITTED, ())


def once_committed(session: Session, call: Callable[[], None]) -> None:
    """Call something, once, after the transaction of a session is committed."""
    session.info.setdefault(_COMMITTED, {})[call] = None


def lock(session: Session, name: str) -> None:
    """Let one transaction at a time go on from here under a name; on SQLite one at a time writes anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))


def _is_lost_race(error: BaseException) -> bool:
    """Whether PostgreSQL undid a transaction for the sake of another, so that it can simply be run again."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) in _LOST_RACES


def _is_fault_of_the_data(error: BaseException) -> bool:
    """Whether the database, or its driver, refused a value."""
    origin = getattr(error, "orig", None)
    refused = isinstance(getattr(origin, "__cause__", None), ValueError | OverflowError)
    state = getattr(origin, "sqlstate", None) or ""
    return isinstance(error, UnicodeEncodeError | OverflowError) or refused or state.startswith("22")


def sqlite_engine(path: Path) -> AsyncEngine:
    """Return an engine on a SQLite file, with foreign keys, a busy timeout and explicit transactions.

    Args:
        path: The file; it is made by `prepare`.
    """
    opened: WeakSet[OneHopConnection] = WeakSet()

    async def opening() -> OneHopConnection:
        connection = await connected(path)
        opened.add(connection)
        return connection

    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", async_creator=opening)
    _opened[engine.sync_engine] = opened
    event.listen(engine.sync_engine, "connect", configure)
    event.listen(engine.sync_engine, "begin", begin)
    return engine


async def close_engine(engine: AsyncEngine) -> None:
    """Close every connection of an engine, also one that whoever was cancelled had not given back."""
    await engine.dispose()
    for connection in list(_opened.get(engine.sync_engine, ())):
        await connection.close()


def engine_at(url: str, *, connections: int = 8) -> AsyncEngine:
    """Return an engine on a database.

    Args:
        url: ``sqlite:///file.db``, or ``postgresql://user:password@host/name``.
        connections: Most connections to PostgreSQL at once.

    Raises:
        ConfigError: If it is neither.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise _no_database() from error
    if parsed.get_backend_name() == "sqlite" and parsed.database not in _MEMORY:
        return sqlite_engine(Path(parsed.database))
    if parsed.get_backend_name() != "postgresql":
        raise _no_database()
    return create_async_engine(
        parsed.set(drivername="postgresql+asyncpg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": STATEMENT_TIMEOUT_S},
    )


def _no_database() -> ConfigError:
    # The address itself is not shown: it may hold a password.
    return ConfigError(
        "the database's address cannot be used",
        todo="give sqlite:///path/to/library.db or postgresql://user:password@host/name",
        code="ESP-2340",
    )


async def prepare(engine: AsyncEngine) -> None:
    """Make the tables where there are none, and see that those that there are fit this library.

    Raises:
        ConfigError: If another version of the library made them.
        StoreUnavailable: If the database does not answer.
    """
    async with _translated():
        await _switch_to_wal(engine)
        writing = engine.execution_options(**{WRITING: True})
        async with writing.begin() as connection:
            await connection.run_sync(_create_or_check)


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
    if connection.dialect.name == "postgresql":  # SQLite holds the write lock already
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _PREPARING})
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
