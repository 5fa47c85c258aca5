"""Blueprints, a page at a time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, String, Text, bindparam, cast, select, tuple_

from esper.contracts.store import BlueprintPage, BlueprintQuery, BlueprintRecord
from esper.services.urza.cursors import place_of, written
from esper.services.urza.fitting import fitting, rarest_first
from esper.services.urza.models import Blueprint, BlueprintTerm
from esper.services.urza.needs import Condition, needs_of, one_of
from esper.services.urza.pages import Found
from esper.services.urza.reader import Reader
from esper.services.urza.terms import AFTER_TAGS, TAG_MARK

SORTED = 2_000
"""Up to so many blueprints are sorted by name, in some milliseconds; where more fit, the list by name soon fills a page."""

_SHOWN = (
    Blueprint.id, Blueprint.name, Blueprint.version, Blueprint.status, Blueprint.parent_id, Blueprint.submitted_by,
    cast(Blueprint.details, Text), cast(Blueprint.architecture_ir, Text), Blueprint.created_at, Blueprint.updated_at,
)  # fmt: skip


@dataclass(frozen=True)
class _Page:
    """Asks for a page of blueprints and one more.

    Attributes:
        needs: What a blueprint must have: how many terms will do, or None for a beginning.
        few: Whether it is one of some that were found before.
        given: Which filters there are: their names.
    """

    needs: tuple[int | None, ...]
    few: bool
    given: frozenset[str]

    def statement(self, *, arrays: bool) -> Found:
        """Find their ids by name and version, then what is shown of them."""
        needs = [Condition(f"need{number}", terms) for number, terms in enumerate(self.needs)]
        found = select(Blueprint.id).where(*(need.holds_for(BlueprintTerm, Blueprint.id) for need in needs))
        if self.few:
            found = found.where(one_of(Blueprint.id, "blueprints", arrays=arrays))
        if "status" in self.given:
            found = found.where(Blueprint.status == bindparam("status"))
        if "after_name" in self.given:
            place = tuple_(bindparam("after_name", type_=String), bindparam("after_version", type_=Integer))
            found = found.where(tuple_(Blueprint.name, Blueprint.version) > place)
        order = (Blueprint.name, Blueprint.version)
        page = found.order_by(*order).limit(bindparam("limit", type_=Integer)).subquery()
        shown: Found = select(*_SHOWN).join(page, page.c.id == Blueprint.id).order_by(*order)
        return shown


@dataclass(frozen=True)
class _One:
    """Asks for one blueprint."""

    def statement(self, *, arrays: bool) -> Found:
        """Find it by its id."""
        found: Found = select(*_SHOWN).where(Blueprint.id == bindparam("id"))
        return found


@dataclass(frozen=True)
class _Tags:
    """Asks for the tags of some blueprints."""

    def statement(self, *, arrays: bool) -> Found:
        """Find them by the ids of the blueprints."""
        row = BlueprintTerm
        found: Found = select(row.blueprint_id, row.term).where(row.term >= TAG_MARK, row.term < AFTER_TAGS)
        return found.where(one_of(row.blueprint_id, "blueprints", arrays=arrays))


_TAGS = _Tags()


async def page_of_blueprints(reader: Reader, query: BlueprintQuery) -> BlueprintPage:
    """Return the page of a query, by name and version.

    Raises:
        ContractError: If its cursor cannot be used.
    """
    place = place_of(query.cursor, str, int) if query.cursor else None
    needs = await needs_of(reader, query.tags, query.match, query.name)
    if any(need.is_hopeless for need in needs):
        return BlueprintPage(blueprints=[])
    filters: dict[str, object] = {} if query.status is None else {"status": query.status}
    if place is not None:
        filters |= {"after_name": place[0], "after_version": place[1]}
    if len(needs) > 2:
        needs = await rarest_first(reader, needs)
    few = await fitting(reader, needs, SORTED) if needs else None
    if few == []:
        return BlueprintPage(blueprints=[])
    values = filters | {"limit": query.limit + 1, "blueprints": few}
    needs = needs if few is None else []
    for number, need in enumerate(needs):
        values |= need.values(f"need{number}")
    page = _Page(tuple(need.num_terms for need in needs), few is not None, frozenset(filters))
    rows = await reader.rows(page, values)
    tags = await tags_of(reader, [row[0] for row in rows])
    found = [_record(row, tags.get(row[0], [])) for row in rows[: query.limit]]
    last = found[-1] if len(rows) > query.limit else None
    return BlueprintPage(blueprints=found, cursor=None if last is None else written(last.name, last.version))


async def blueprint_record(reader: Reader, blueprint_id: str) -> BlueprintRecord | None:
    """Return one blueprint, or None where there is none."""
    rows = await reader.rows(_One(), {"id": blueprint_id})
    if not rows:
        return None
    return _record(rows[0], (await tags_of(reader, [blueprint_id])).get(blueprint_id, []))


async def tags_of(reader: Reader, blueprint_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the tags of blueprints, in alphabetical order."""
    if not blueprint_ids:
        return {}
    found: dict[str, list[str]] = {}
    for blueprint_id, term in await reader.rows(_TAGS, {"blueprints": list(blueprint_ids)}):
        found.setdefault(blueprint_id, []).append(term.removeprefix(TAG_MARK))
    return {blueprint_id: sorted(tags) for blueprint_id, tags in found.items()}


def _record(row: Sequence[Any], tags: list[str]) -> BlueprintRecord:
    return BlueprintRecord(
        blueprint_id=row[0], name=row[1], version=row[2], status=row[3], tags=tags, parent_id=row[4],
        submitted_by=row[5], metadata=json.loads(row[6]), architecture_ir=json.loads(row[7]),
        created_at=row[8], updated_at=row[9],
    )  # fmt: skip
