"""Effects of messages as rows of a SQLite file, each in one transaction with the id of its message."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from esper.ports import Delivery
from esper.services.oona.effects import Effects
from esper.testing.history import Message

NAME = "ledger.db"
_BUSY_S = 20.0
"""How long a writer waits for another that was frozen in its transaction."""


class Ledger:
    """What readers write their effects into.

    Args:
        folder: Where the file is.
        remembers: Whether a message whose id is there already is passed over.
    """

    def __init__(self, folder: Path, *, remembers: bool = True) -> None:
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{folder / NAME}", connect_args={"timeout": _BUSY_S})
        event.listen(self._engine.sync_engine, "connect", _without_sync)
        self._effects, self._remembers = Effects(self._engine), remembers

    async def create(self) -> None:
        """Make the tables, before anybody writes."""
        await self._effects.create()
        async with self._engine.begin() as connection:
            await connection.execute(
                text("CREATE TABLE ledger (group_name TEXT, id TEXT, writer TEXT, number INTEGER)")
            )

    async def write(self, group: str, message: Message, delivery: Delivery) -> None:
        """Make the effect of a message durable."""

        async def effect(connection: AsyncConnection, delivery: Delivery) -> None:
            row = {"group": group, "id": delivery.id, "writer": message.writer, "number": message.number}
            await connection.execute(text("INSERT INTO ledger VALUES (:group, :id, :writer, :number)"), row)

        if self._remembers:
            await self._effects.once(group, effect)(delivery)
        else:
            async with self._engine.begin() as connection:
                await effect(connection, delivery)

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def rows_of(folder: Path) -> list[tuple[str, str, str, int]]:
    """Return group, id, writer and number of every effect."""
    with closing(sqlite3.connect(folder / NAME, timeout=_BUSY_S)) as db:
        return db.execute("SELECT group_name, id, writer, number FROM ledger").fetchall()


def _without_sync(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """A kill takes nothing from the page cache, and schedules are short."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.close()
