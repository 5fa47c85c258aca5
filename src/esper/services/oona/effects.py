"""Effects in a database that happen once, although their messages may arrive more often."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from sqlalchemy import Column, CursorResult, Float, Insert, MetaData, String, Table, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from esper.errors import ConfigError
from esper.ports import Clock, Delivery, DeliveryHandler
from esper.runtime.clock import SystemClock
from esper.telemetry.logs import get_logger

KEEP_S = 7 * 86_400.0
"""How long ids are kept: longer than any message waits, dead letters that somebody puts back among them."""
_FORGET_EVERY_S = 3_600.0

Effect: TypeAlias = Callable[[AsyncConnection, Delivery], Awaitable[None]]

_log = get_logger("oona.effects")
_DIALECTS = ("postgresql", "sqlite")


class Effects:
    """Keeps in a database which messages have had their effect there: the id is written in the transaction of the effect, so
    that neither can exist without the other, whoever dies and whenever.

    ```python
    effects = Effects(engine)
    await effects.create()

    async def book(connection, delivery):
        await connection.execute(...)

    await bus.subscribe("orders", "bookkeeping", effects.once("bookkeeping", book))
    ```

    SQLite and PostgreSQL. Of two processes that are handed the same message at once, the second waits for the first, and has
    no effect of its own unless the first one failed.

    Args:
        engine: The database of the effects.
        table_name: Table for the ids.
        keep_s: How long an id is kept. A message that comes again after that has a second effect.
        clock: Tells the time.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        table_name: str = "oona_effects",
        keep_s: float = KEEP_S,
        clock: Clock | None = None,
    ) -> None:
        if engine.dialect.name not in _DIALECTS:
            raise ConfigError(f"effects cannot be kept in {engine.dialect.name}", todo=f"use {' or '.join(_DIALECTS)}")
        self._engine, self._keep_s, self._clock = engine, keep_s, clock or SystemClock()
        self._dialect = engine.dialect.name
        self._forget_at = 0.0
        self.table = Table(
            table_name,
            MetaData(),
            Column("group_name", String(200), primary_key=True),
            Column("message_id", String(200), primary_key=True),
            Column("at_s", Float(53), nullable=False, index=True),
        )

    async def create(self) -> None:
        """Make the table where it is missing; a deployment with migrations makes it from ``table`` in one of its own."""
        async with self._engine.begin() as connection:
            await connection.run_sync(self.table.metadata.create_all)

    async def claim(self, transaction: AsyncConnection | AsyncSession, message_id: str, group: str) -> bool:
        """Write down in a transaction that a message has its effect in it.

        Args:
            transaction: The open transaction of the effect; it is for the caller to commit.
            message_id: The message.
            group: Whose effect it is: each group of a stream has its own.

        Returns:
            Whether the message had none before. Where it had, there is nothing to do.
        """
        row = {"group_name": group, "message_id": message_id, "at_s": self._clock.now_s()}
        if self._dialect == "sqlite":
            statement: Insert = sqlite.insert(self.table).values(row).on_conflict_do_nothing()
        else:
            statement = postgresql.insert(self.table).values(row).on_conflict_do_nothing()
        written = await transaction.execute(statement)
        assert isinstance(written, CursorResult)
        return written.rowcount == 1

    def once(self, group: str, effect: Effect) -> DeliveryHandler:
        """Return a handler whose effect a message has once, in one transaction with its id.

        Args:
            group: Whose effect it is.
            effect: Changes the database over the connection that it is given, and commits nothing itself. Where it raises,
                neither the effect nor the id is kept, and the message comes again.
        """

        async def handle(delivery: Delivery) -> None:
            async with self._engine.begin() as connection:
                if await self.claim(connection, delivery.id, group):
                    await effect(connection, delivery)
            await self._forget_now_and_then()

        return handle

    async def forget(self) -> int:
        """Delete ids that are older than ``keep_s``, and return how many there were."""
        async with self._engine.begin() as connection:
            gone = await connection.execute(
                delete(self.table).where(self.table.c.at_s < self._clock.now_s() - self._keep_s)
            )
        return gone.rowcount

    async def _forget_now_and_then(self) -> None:
        now = self._clock.monotonic_s()
        if now < self._forget_at:
            return
        self._forget_at = now + min(_FORGET_EVERY_S, self._keep_s)
        try:
            await self.forget()
        except SQLAlchemyError as error:  # The effect is there; the ids are tidied the next time.
            _log.warning("ids_not_forgotten", table=self.table.name, why=str(error))
