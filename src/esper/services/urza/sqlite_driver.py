"""SQLite behind one thread hop for each statement.

aiosqlite, which SQLAlchemy drives, sends each call of a cursor to the thread of its connection: making it, executing, fetching,
closing. A hop costs more than most statements here, so a cursor does all four in one.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import aiosqlite
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for another process; a transaction here takes milliseconds."""
WRITING = "esper_writing"
"""Option of a connection whose transactions take the write lock at once."""

Work: TypeAlias = Callable[[sqlite3.Cursor], object]


class OneHopCursor:
    """What SQLAlchemy needs of a cursor; rows are read when the statement is executed.

    Args:
        connection: Whose thread it hops to.
    """

    def __init__(self, connection: "OneHopConnection") -> None:
        self.description: Any = None
        self.rowcount, self.arraysize = -1, 1
        self.lastrowid: int | None = None
        self._connection = connection
        self._rows: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Self:
        """Execute a statement, and read what it returns."""
        await self._connection.hop(self._done, lambda cursor: cursor.execute(statement, parameters))
        return self

    async def executemany(self, statement: str, parameters: Iterable[Sequence[Any]]) -> Self:
        """Execute a statement once for each set of parameters."""
        await self._connection.hop(self._done, lambda cursor: cursor.executemany(statement, parameters))
        return self

    async def fetchall(self) -> list[Any]:
        """Return the rows, once."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Do nothing: the real cursor was closed when its rows were read."""

    def _done(self, work: Work) -> None:
        """Run in the thread of the connection."""
        cursor = self._connection._conn.cursor()
        try:
            work(cursor)
            self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid
            if cursor.description:
                self._rows = cursor.fetchall()
        finally:
            cursor.close()


class OneHopConnection(aiosqlite.Connection):
    """A connection of aiosqlite that gives such cursors."""

    def cursor(self) -> OneHopCursor:  # type: ignore[override]
        """Return a cursor; no hop is needed for it."""
        return OneHopCursor(self)

    async def hop(self, done: Callable[[Work], None], work: Work) -> None:
        """Do work in the thread of the connection."""
        await self._execute(done, work)  # type: ignore[no-untyped-call]


async def connected(path: Path) -> OneHopConnection:
    """Open a SQLite file; its thread ends with the process where nobody closes it."""
    connection = OneHopConnection(lambda: sqlite3.connect(path), iter_chunk_size=64)
    connection._thread.daemon = True
    await connection
    return connection


def configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Give a new connection foreign keys, a busy timeout and explicit transactions."""
    # The driver would begin transactions on its own, and always without the write lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys = ON")
    # In WAL mode NORMAL can lose the newest transactions in a power cut, but never corrupts; FULL keeps them too.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def begin(connection: Connection) -> None:
    """Begin a transaction, with the write lock where it is to write."""
    immediate = connection.get_execution_options().get(WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
