"""Statements that select a page of kernels: from lists that an index has in order, or from the kernels of few blueprints."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Select,
    String,
    Text,
    bindparam,
    cast,
    literal_column,
    select,
    tuple_,
    union,
    union_all,
)

from esper.contracts.kernel import KernelStatus
from esper.contracts.store import KernelQuery
from esper.services.urza.models import Blueprint, Kernel, KernelTerm
from esper.services.urza.needs import Condition, one_of

Found: TypeAlias = Select[*tuple[Any, ...]]

_MIB, _MOST = 2**20, 2**63 - 1


class Shown(Enum):
    """What is told of each kernel."""

    SUMMARY = "summary"
    RECORD = "record"

    def rows(self) -> Found:
        """Select it, of every kernel; JSON as text."""
        if self is Shown.SUMMARY:
            return select(*_SUMMARY)
        return select(*_SUMMARY, *_MORE).join(Blueprint, Blueprint.id == Kernel.blueprint_id)


_SUMMARY = (Kernel.id, Kernel.blueprint_id, cast(Kernel.tags, Text), Kernel.throughput, Kernel.target_device)
_MORE = (
    Blueprint.name, Blueprint.version, Kernel.status, Kernel.optimization_level, Kernel.compiler_version,
    Kernel.size_bytes, Kernel.compilation_time_ms, Kernel.latency_ms, Kernel.num_params, Kernel.validation_passed,
    Kernel.safety_checks_passed, cast(Kernel.validation_metrics, Text),
    cast(Kernel.benchmark_results, Text), Kernel.created_at, Kernel.updated_at,
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """Asks for a page of kernels and one more, with the rank of each at the end.

    Attributes:
        shown: What is told of each.
        lists: How many terms' lists are read in order; 0 reads all kernels.
        also: What else a kernel must have: how many terms will do, or None for a beginning.
        few: Whether it reads the kernels of some blueprints in place of lists.
        given: Which filters there are: their names.
        trained: Whether there must be something to train in it, or must not, or None.
    """

    shown: Shown
    lists: int
    also: tuple[int | None, ...]
    few: bool
    given: frozenset[str]
    trained: bool | None

    def statement(self, *, arrays: bool) -> Found:
        """Find the page by its ids, then what is shown of it."""
        found = (self._of_few(arrays) if self.few else self._of_lists()).subquery()
        return (
            self.shown.rows()
            .add_columns(found.c.rank)
            .join(found, found.c.id == Kernel.id)
            .order_by(found.c.rank, found.c.id)
        )

    @property
    def _needs(self) -> list[Condition]:
        return [Condition(f"also{number}", terms) for number, terms in enumerate(self.also)]

    def _of_few(self, arrays: bool) -> Found:
        """Read the kernels of few blueprints, and sort them."""
        found = select(Kernel.id.label("id"), Kernel.rank.label("rank")).where(
            one_of(Kernel.blueprint_id, "blueprints", arrays=arrays), *self._filters(Kernel)
        )
        if "status" in self.given:
            found = found.where(Kernel.status == bindparam("status"))
        found = found.where(*(need.holds_for(KernelTerm, Kernel.id) for need in self._needs))
        # Or else the planner hopes to meet one of the few soon, while it reads all kernels in order.
        few = found.cte("few").prefix_with("MATERIALIZED")
        return self._cut(select(few.c.id, few.c.rank), few.c.rank, few.c.id)

    def _of_lists(self) -> Found:
        """Read ordered lists, one for each term and status, until each has filled a page; then take the page from these."""
        statuses: list[Any] = (
            [bindparam("status")] if "status" in self.given else [literal_column(f"'{one}'") for one in KernelStatus]
        )
        lists = [
            (self._list(number, status) if self.lists else self._whole_list(status)).subquery()
            for number in range(max(1, self.lists))
            for status in statuses
        ]
        arms = [select(one.c.id.label("id"), one.c.rank.label("rank")) for one in lists]
        if len(arms) == 1:
            return arms[0]
        whole = (union(*arms) if self.lists > 1 else union_all(*arms)).subquery()
        return select(whole.c.id, whole.c.rank).order_by(whole.c.rank, whole.c.id).limit(_LIMIT)

    def _list(self, number: int, status: Any) -> Found:
        row = KernelTerm
        found = select(row.kernel_id.label("id"), row.rank.label("rank")).where(
            row.term == bindparam(f"list{number}"), row.status == status, *self._filters(row)
        )
        for need in self._needs:
            found = found.where(*need.likely(row.signature), need.holds_for(row, row.kernel_id))
        return self._cut(found, row.rank, row.kernel_id)

    def _whole_list(self, status: Any) -> Found:
        found = select(Kernel.id.label("id"), Kernel.rank.label("rank")).where(
            Kernel.status == status, *self._filters(Kernel)
        )
        found = found.where(*(need.holds_for(KernelTerm, Kernel.id) for need in self._needs))
        return self._cut(found, Kernel.rank, Kernel.id)

    def _filters(self, of: type[Kernel] | type[KernelTerm]) -> list[ColumnElement[bool]]:
        """Return what the kernel itself must fulfil; every list's index has these columns too."""
        found: list[ColumnElement[bool]] = []
        if "device" in self.given:
            found.append(of.target_device == bindparam("device"))
        if "max_latency_ms" in self.given:
            found.append(of.latency_ms <= bindparam("max_latency_ms"))
        if "max_size_bytes" in self.given:
            found.append(of.size_bytes <= bindparam("max_size_bytes"))
        if self.trained is not None:
            found.append(of.num_params > 0 if self.trained else of.num_params == 0)
        return found

    def _cut(self, found: Found, rank: Any, key: Any) -> Found:
        """Keep what lies after the cursor and is fast enough, in order, a page and one."""
        if "last_rank" in self.given:
            found = found.where(rank <= bindparam("last_rank", type_=Double))
        if "after_rank" in self.given:
            place = tuple_(bindparam("after_rank", type_=Double), bindparam("after_id", type_=String))
            found = found.where(tuple_(rank, key) > place)
        return found.order_by(rank, key).limit(_LIMIT)


_LIMIT: Any = bindparam("limit", type_=Integer)


@dataclass(frozen=True)
class OneKernel:
    """Asks for one kernel, whole."""

    def statement(self, *, arrays: bool) -> Found:
        """Find it by its id."""
        return Shown.RECORD.rows().where(Kernel.id == bindparam("id"))


def filters_of(query: KernelQuery, place: Sequence[Any] | None) -> dict[str, object]:
    """Return the values of the filters that a query has, by name."""
    found: dict[str, object] = {
        "status": query.status, "device": query.device, "max_latency_ms": query.max_latency_ms,
        "max_size_bytes": None if query.max_memory_mb is None else int(min(query.max_memory_mb * _MIB, _MOST)),
        "last_rank": None if query.min_performance is None else -max(query.min_performance, 0.0),
    }  # fmt: skip
    if place is not None:
        found |= {"after_rank": place[0], "after_id": place[1]}
    return {name: value for name, value in found.items() if value is not None}
