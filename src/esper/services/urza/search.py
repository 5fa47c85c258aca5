"""Which kernels fit a query, a page at a time.

A page costs about the same in a library of ten thousand kernels and of a million: lists by one term, status or device are read
from an index that already has their order, and where several terms must hold together, the blueprints that fit are looked for
up to a bound first. Where they are few, their kernels are sorted; where they are many, the ordered list of the rarest term is
read until the page is full, which is soon.
"""

import json
from collections.abc import Sequence
from typing import Any

from esper.contracts.store import KernelPage, KernelQuery, KernelRecord
from esper.services.urza.cursors import place_of, written
from esper.services.urza.fitting import FEW, fitting, rarest_first
from esper.services.urza.needs import Need, needs_of
from esper.services.urza.pages import OneKernel, Page, Shown, filters_of
from esper.services.urza.reader import Reader, Rows


async def page_of_kernels(reader: Reader, query: KernelQuery) -> KernelPage:
    """Return the page of a query.

    Raises:
        ContractError: If its cursor cannot be used.
    """
    rows, cursor = await page_of_rows(reader, query, Shown.RECORD)
    return KernelPage(kernels=[_record(row) for row in rows], cursor=cursor)


async def page_of_rows(reader: Reader, query: KernelQuery, shown: Shown) -> tuple[Rows, str | None]:
    """Return the rows of a page, and where the next one begins.

    Raises:
        ContractError: If the cursor cannot be used.
    """
    place = place_of(query.cursor, float, str) if query.cursor else None
    rows = await _rows(reader, query, place, shown)
    if len(rows) <= query.limit:
        return rows, None
    last = rows[query.limit - 1]
    return rows[: query.limit], written(float(last[-1]), last[0])


async def kernel_record(reader: Reader, kernel_id: str) -> KernelRecord | None:
    """Return one kernel, or None where there is none."""
    rows = await reader.rows(OneKernel(), {"id": kernel_id})
    return _record(rows[0]) if rows else None


async def _rows(reader: Reader, query: KernelQuery, place: Sequence[Any] | None, shown: Shown) -> Rows:
    """Choose how to look, and look: a page of rows and one more."""
    needs = await needs_of(reader, query.tags, query.match, query.name)
    if any(need.is_hopeless for need in needs):
        return []
    blueprints = None if query.blueprint_id is None else [query.blueprint_id]
    if blueprints is None and (len(needs) > 1 or any(need.beginning is not None for need in needs)):
        if len(needs) > 2:
            needs = await rarest_first(reader, needs)
        blueprints = await fitting(reader, needs, FEW)
        if blueprints is not None:
            needs = []
        elif len(needs) == 2:
            needs = await rarest_first(reader, needs)
    return await _read(reader, query, place, shown, needs, blueprints)


async def _read(
    reader: Reader,
    query: KernelQuery,
    place: Sequence[Any] | None,
    shown: Shown,
    needs: Sequence[Need],
    blueprints: list[str] | None,
) -> Rows:
    """Read the kernels of some blueprints, or the lists of the first need; the other needs are looked up for each."""
    if blueprints == []:
        return []
    lists = needs[0].terms if needs and blueprints is None else ()
    also = needs[1:] if lists else needs
    filters = filters_of(query, place)
    page = Page(
        shown=shown, lists=len(lists), also=tuple(need.num_terms for need in also), few=blueprints is not None,
        given=frozenset(filters), trained=query.has_params,
    )  # fmt: skip
    values = filters | {"limit": query.limit + 1, "blueprints": blueprints or []}
    values |= {f"list{number}": term for number, term in enumerate(lists)}
    for number, need in enumerate(also):
        values |= need.values(f"also{number}")
    return await reader.rows(page, values)


def _record(row: Sequence[Any]) -> KernelRecord:
    return KernelRecord(
        kernel_id=row[0], blueprint_id=row[1], tags=json.loads(row[2]), throughput=row[3], target_device=row[4],
        name=row[5], version=row[6], status=row[7], optimization_level=row[8], compiler_version=row[9],
        size_bytes=row[10], compilation_time_ms=row[11], latency_ms=row[12], num_params=row[13],
        validation_passed=row[14], safety_checks_passed=row[15], validation_metrics=json.loads(row[16]),
        benchmark_results=json.loads(row[17]), created_at=row[18], updated_at=row[19],
    )  # fmt: skip
