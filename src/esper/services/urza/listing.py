"""Blueprints, a page at a time."""

from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.store import BlueprintPage, BlueprintQuery, BlueprintRecord
from esper.services.urza.cursors import place_of, written
from esper.services.urza.models import Blueprint, BlueprintTerm
from esper.services.urza.needs import Condition, needs_of
from esper.services.urza.reader import SessionReader
from esper.services.urza.search import tags_of

_SHOWN = (
    Blueprint.id, Blueprint.name, Blueprint.version, Blueprint.status, Blueprint.parent_id, Blueprint.submitted_by,
    Blueprint.details, Blueprint.architecture_ir, Blueprint.created_at, Blueprint.updated_at,
)  # fmt: skip


async def page_of_blueprints(session: AsyncSession, query: BlueprintQuery) -> BlueprintPage:
    """Return the page of a query, by name and version.

    Raises:
        ContractError: If its cursor cannot be used.
    """
    needs = await needs_of(SessionReader(session), query.tags, query.match, query.name)
    if any(need.is_hopeless for need in needs):
        return BlueprintPage(blueprints=[])
    conditions, values = [], dict[str, object]()
    for number, need in enumerate(needs):
        condition = Condition(f"need{number}", need.num_terms)
        conditions.append(condition.holds_for(BlueprintTerm, Blueprint.id))
        values |= need.values(condition.name)
    if query.status is not None:
        conditions.append(Blueprint.status == query.status)
    if query.cursor:
        conditions.append(tuple_(Blueprint.name, Blueprint.version) > tuple_(*place_of(query.cursor, str, int)))
    found = select(*_SHOWN).where(*conditions).order_by(Blueprint.name, Blueprint.version).limit(query.limit + 1)
    rows = (await session.execute(found, values)).all()
    tags = await tags_of(session, {row[0] for row in rows})
    page = [_record(row, tags.get(row[0], [])) for row in rows[: query.limit]]
    last = page[-1] if len(rows) > query.limit else None
    return BlueprintPage(blueprints=page, cursor=None if last is None else written(last.name, last.version))


async def blueprint_record(session: AsyncSession, blueprint_id: str) -> BlueprintRecord | None:
    """Return one blueprint, or None where there is none."""
    row = (await session.execute(select(*_SHOWN).where(Blueprint.id == blueprint_id))).one_or_none()
    return None if row is None else _record(row, (await tags_of(session, {blueprint_id})).get(blueprint_id, []))


def _record(row: Any, tags: list[str]) -> BlueprintRecord:
    return BlueprintRecord(
        blueprint_id=row[0], name=row[1], version=row[2], status=row[3], tags=tags, parent_id=row[4],
        submitted_by=row[5], metadata=row[6], architecture_ir=row[7], created_at=row[8], updated_at=row[9],
    )  # fmt: skip
