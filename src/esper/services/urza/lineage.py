"""Where blueprints come from, and what was made of them, each in one recursive query.

The query unites what it finds as a set, so that a circle of parents, which no call makes but a restored backup may hold, ends
by itself.
"""

from typing import Any

from sqlalchemy import CTE, Row, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from esper.contracts.store import LineageEntry
from esper.services.urza.listing import tags_of
from esper.services.urza.models import Blueprint
from esper.services.urza.reader import SessionReader

MAX_LINE = 10_000
"""Blueprints that one answer holds at most."""


async def ancestors(session: AsyncSession, blueprint_id: str) -> list[LineageEntry]:
    """Return the line from a blueprint to its origin; nothing where there is no such blueprint."""
    rows = await _rows(session, _climbing(blueprint_id), MAX_LINE)
    return await _entries(session, rows, _climbed(blueprint_id, rows))


async def descends(session: AsyncSession, blueprint_id: str, ancestor_id: str) -> bool:
    """Say whether a blueprint is another one, or was made from it, however long the line is."""
    line = _climbing(blueprint_id)
    found = await session.execute(select(line.c.id).where(line.c.id == ancestor_id).limit(1))
    return found.first() is not None


async def descendants(session: AsyncSession, blueprint_id: str, limit: int) -> list[LineageEntry]:
    """Return what was made of a blueprint, itself first, then what is near before what is far.

    Args:
        session: Where to look.
        blueprint_id: The first.
        limit: Longest answer.
    """
    line = _start(blueprint_id)
    child = aliased(Blueprint)
    line = line.union(select(child.id, child.parent_id).where(child.parent_id == line.c.id))
    rows = await _rows(session, line, limit)
    return await _entries(session, rows, _spread(blueprint_id, rows))


def _climbing(blueprint_id: str) -> CTE:
    line, parent = _start(blueprint_id), aliased(Blueprint)
    return line.union(select(parent.id, parent.parent_id).where(parent.id == line.c.parent_id))


def _start(blueprint_id: str) -> CTE:
    found = select(Blueprint.id, Blueprint.parent_id).where(Blueprint.id == blueprint_id)
    return found.cte("line", recursive=True)


async def _rows(session: AsyncSession, line: CTE, limit: int) -> dict[str, Row[*tuple[Any, ...]]]:
    shown = (Blueprint.id, Blueprint.name, Blueprint.version, Blueprint.created_at, Blueprint.parent_id)
    # Both databases go breadth first, so that a limit keeps what is near.
    near = select(line.c.id).limit(limit).subquery()
    found = await session.execute(select(*shown).join(near, near.c.id == Blueprint.id))
    return {row.id: row for row in found}


async def _entries(
    session: AsyncSession, rows: dict[str, Row[*tuple[Any, ...]]], depths: dict[str, int]
) -> list[LineageEntry]:
    tags = await tags_of(SessionReader(session), list(depths))
    return [
        LineageEntry(
            blueprint_id=key, name=rows[key].name, version=rows[key].version, created_at=rows[key].created_at,
            tags=tuple(tags.get(key, ())), parent_id=rows[key].parent_id, depth=depth,
        )
        for key, depth in depths.items()
    ]  # fmt: skip


def _climbed(first: str, rows: dict[str, Row[*tuple[Any, ...]]]) -> dict[str, int]:
    depths: dict[str, int] = {}
    here: str | None = first
    while here is not None and here in rows and here not in depths:
        depths[here] = len(depths)
        here = rows[here].parent_id
    return depths


def _spread(first: str, rows: dict[str, Row[*tuple[Any, ...]]]) -> dict[str, int]:
    children: dict[str | None, list[str]] = {}
    for key, row in sorted(rows.items()):
        children.setdefault(row.parent_id, []).append(key)
    depths: dict[str, int] = {}
    ring = [first] if first in rows else []
    while ring:
        depth = max(depths.values(), default=-1) + 1
        depths |= dict.fromkeys(ring, depth)
        ring = [child for key in ring for child in children.get(key, ()) if child not in depths]
    return depths
