"""Hears which statements a store sends to PostgreSQL, and lets the server say what they cost."""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from esper.services.urza.database import Database
from esper.services.urza.reader import PLAN_ONCE, PostgresReader, Rows

Statements = list[tuple[str, Sequence[object]]]

_ASKED = "EXPLAIN (ANALYZE, TIMING OFF, SUMMARY ON, FORMAT JSON) "


class _Listening(PostgresReader):
    """Remembers what it asks."""

    heard: Statements

    async def fetch(self, sql: str, given: Sequence[object]) -> Rows:
        self.heard.append((sql, given))
        return await super().fetch(sql, given)


class Heard:
    """What a store sends, through sessions and through its reader.

    Args:
        engine: The engine of its sessions.
        database: The store's; its reader is taken over.
    """

    def __init__(self, engine: AsyncEngine, database: Database) -> None:
        self._engine = engine
        self._reader = database.reader = _Listening(engine.url, connections=1, timeouts_s=(5.0, 10.0, 30.0))
        self._reader.heard = Statements()
        self._prepared: dict[str, str] = {}
        self._connection: Any = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Statements]:
        """Collect statements within the block, with their values."""
        self._reader.heard = heard = Statements()

        def hear(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
            if statement.lstrip().upper().startswith(("SELECT", "WITH")):
                heard.append((statement, parameters))

        event.listen(self._engine.sync_engine, "before_cursor_execute", hear)
        try:
            yield heard
        finally:
            event.remove(self._engine.sync_engine, "before_cursor_execute", hear)
            self._reader.heard = Statements()

    async def plans(
        self, statements: Iterable[tuple[str, Sequence[object]]], *, anew: bool = False
    ) -> list[dict[str, Any]]:
        """Run statements again, and return their plans with times.

        Args:
            statements: What was sent.
            anew: Whether each is planned for its values, in place of being prepared.
        """
        if self._connection is None:
            url = self._engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            self._connection = await asyncpg.connect(url, server_settings=PLAN_ONCE, statement_cache_size=0)
        return [await self._plan(sql, values, anew=anew) for sql, values in statements]

    async def close(self) -> None:
        """Close the connection on which statements are explained."""
        if self._connection is not None:
            await self._connection.close()

    async def _plan(self, sql: str, values: Sequence[object], *, anew: bool) -> dict[str, Any]:
        if anew:
            await self._connection.execute("SET plan_cache_mode = force_custom_plan")
            found = await self._connection.fetchval(_ASKED + sql, *values)
            await self._connection.execute("RESET plan_cache_mode")
        else:
            name = self._prepared.get(sql) or await self._prepare(sql)
            given = f"({', '.join(map(_literal, values))})" if values else ""
            found = await self._connection.fetchval(f"{_ASKED} EXECUTE {name}{given}")
        plan: dict[str, Any] = json.loads(found)[0]
        return plan

    async def _prepare(self, sql: str) -> str:
        name = self._prepared[sql] = f"heard{len(self._prepared)}"
        await self._connection.execute(f"PREPARE {name} AS {sql}")
        return name


def cost_ms(plan: dict[str, Any]) -> float:
    """Return the planning and execution time of a plan."""
    return float(plan["Planning Time"] + plan["Execution Time"])


def whole_reads(plan: dict[str, Any], large: Sequence[str]) -> list[str]:
    """Return the large tables that a plan reads from end to end."""
    found, rest = [], [plan["Plan"]]
    while rest:
        node = rest.pop()
        rest += node.get("Plans", [])
        if node["Node Type"] == "Seq Scan" and node.get("Relation Name") in large:
            found.append(node["Relation Name"])
    return found


def _literal(value: object) -> str:
    """Return a value as SQL has it."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]::varchar[]"
    if isinstance(value, bool | int | float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"
