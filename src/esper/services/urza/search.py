"""Which kernels and blueprints fit a query, a page at a time.

A page costs about the same in a library of ten thousand kernels and of a million: lists by one tag, status or device are read
from an index that already has their order, and where several tags or words must hold together, the blueprints that fit are
counted up to a bound first. Where they are few, their kernels are sorted; where they are many, the ordered list is read
until the page is full, which is soon.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    and_,
    exists,
    func,
    literal,
    select,
    tuple_,
    union,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.kernel import KernelStatus
from esper.contracts.store import KernelPage, KernelQuery, KernelRecord, Match
from esper.services.urza.cursors import place_of, written
from esper.services.urza.models import Blueprint, BlueprintTag, BlueprintWord, Kernel, KernelTag
from esper.services.urza.words import after, asked_for

Found: TypeAlias = Select[*tuple[Any, ...]]

FEW = 200
"""Up to so many blueprints their kernels are read and sorted, which takes 1 to 2 ms."""
_SAMPLE = "sha256:04"
"""One digest in 64 is less; digests are as good as random, so this is a fair sample of the blueprints."""
_FEW_WORDS = 8
_MIB = 2**20

_SHOWN = (
    Kernel.id, Kernel.blueprint_id, Blueprint.name, Blueprint.version, Kernel.status, Kernel.target_device,
    Kernel.optimization_level, Kernel.compiler_version, Kernel.size_bytes, Kernel.compilation_time_ms, Kernel.throughput,
    Kernel.latency_ms, Kernel.num_params, Kernel.validation_passed, Kernel.safety_checks_passed,
    Kernel.validation_metrics, Kernel.benchmark_results, Kernel.created_at, Kernel.updated_at,
)  # fmt: skip
_SHOWN_RANK = len(_SHOWN)


async def page_of_kernels(session: AsyncSession, query: KernelQuery) -> KernelPage:
    """Return the page of a query.

    Raises:
        ContractError: If its cursor cannot be used.
    """
    place = place_of(query.cursor, float, str) if query.cursor else None
    found = await _page(session, query, place)
    rows = (await session.execute(_shown(found))).all()
    tags = await tags_of(session, {row[1] for row in rows})
    kernels = [_record(row, tags.get(row[1], [])) for row in rows[: query.limit]]
    last = rows[query.limit - 1] if len(rows) > query.limit else None
    return KernelPage(kernels=kernels, cursor=None if last is None else written(float(last[_SHOWN_RANK]), last[0]))


async def kernel_record(session: AsyncSession, kernel_id: str) -> KernelRecord | None:
    """Return one kernel, or None where there is none."""
    query = select(*_SHOWN).join(Blueprint, Blueprint.id == Kernel.blueprint_id).where(Kernel.id == kernel_id)
    row = (await session.execute(query)).one_or_none()
    return None if row is None else _record(row, (await tags_of(session, {row[1]})).get(row[1], []))


async def tags_of(session: AsyncSession, blueprint_ids: set[str]) -> dict[str, list[str]]:
    """Return the tags of blueprints, in alphabetical order."""
    query = select(BlueprintTag.blueprint_id, BlueprintTag.tag).where(BlueprintTag.blueprint_id.in_(blueprint_ids))
    found: dict[str, list[str]] = {}
    for blueprint_id, tag in (await session.execute(query)).all():
        found.setdefault(blueprint_id, []).append(tag)
    return {blueprint_id: sorted(tags) for blueprint_id, tags in found.items()}


@dataclass(frozen=True)
class Beginning:
    """How a word begins, with all the words that do, where these are few.

    Attributes:
        text: The beginning.
        words: The words, or None where they are many or were not looked up.
    """

    text: str
    words: tuple[str, ...] | None = None

    @property
    def condition(self) -> ColumnElement[bool]:
        """The condition that a row's word begins so."""
        word = BlueprintWord.word
        if self.words is None:
            return and_(word >= self.text, word < after(self.text))
        return word == self.words[0] if len(self.words) == 1 else word.in_(self.words)

    @property
    def blueprints(self) -> Select[str] | CompoundSelect[str]:
        """Selects the blueprints with such a word; those of certain words come sorted from the index, some perhaps twice."""
        if self.words is None:
            return select(BlueprintWord.blueprint_id).where(self.condition).distinct()
        lists = [select(BlueprintWord.blueprint_id).where(BlueprintWord.word == word) for word in self.words]
        return lists[0] if len(lists) == 1 else union_all(*lists)


async def looked_up(session: AsyncSession, text: str) -> Beginning:
    """Return a beginning with its words, jumping from word to word in the index."""
    word = BlueprintWord.word
    first = select(func.min(word).label("word")).where(word >= text, word < after(text))
    jump = first.cte("words", recursive=True)
    following = select(func.min(word)).where(word > jump.c.word, word < after(text)).scalar_subquery()
    jump = jump.union_all(select(following).where(jump.c.word.is_not(None)))
    found = [one for one in await session.scalars(select(jump.c.word).limit(_FEW_WORDS + 1)) if one is not None]
    return Beginning(text, tuple(found) if len(found) <= _FEW_WORDS else None)


def blueprint_conditions(tags: Sequence[str], match: Match, words: Sequence[Beginning]) -> list[ColumnElement[bool]]:
    """Return what a blueprint must fulfil to have the tags, and each of the words by its beginning."""
    found = [has_word(Blueprint.id, word) for word in words]
    if match is Match.ALL:
        return found + [has_tag(Blueprint.id, tag) for tag in tags]
    tagged = exists().where(BlueprintTag.blueprint_id == Blueprint.id, BlueprintTag.tag.in_(tags))
    return [*found, tagged] if tags else found


def has_tag(blueprint_id: Any, tag: str) -> ColumnElement[bool]:
    """Return the condition that a blueprint has a tag."""
    return exists().where(BlueprintTag.blueprint_id == blueprint_id, BlueprintTag.tag == tag)


def has_word(blueprint_id: Any, word: Beginning) -> ColumnElement[bool]:
    """Return the condition that a blueprint's name has a word with a beginning."""
    return exists().where(BlueprintWord.blueprint_id == blueprint_id, word.condition)


async def _page(session: AsyncSession, query: KernelQuery, place: tuple[Any, ...] | None) -> Found:
    """Return the statement that selects ids and ranks of a page and one more."""
    tags = sorted(set(query.tags))
    words = [await looked_up(session, word) for word in asked_for(query.name)]
    if any(word.words == () for word in words):
        return _of_blueprints(query, [], [], [], place)
    if query.blueprint_id is not None:
        return _of_blueprints(query, [query.blueprint_id], tags, words, place)
    if (len(tags) > 1 and query.match is Match.ALL) or words:
        fitting = list(await session.scalars(_fitting(tags, query.match, words)))
        if len(fitting) <= FEW:
            return _of_blueprints(query, sorted(set(fitting)), [], [], place)
    if len(tags) > 1 and query.match is Match.ALL:
        tags = await _rarest_first(session, tags)
        return _ordered(query, tags[:1], tags[1:], words, place)
    return _ordered(query, tags, [], words, place)


def _fitting(tags: Sequence[str], match: Match, words: Sequence[Beginning]) -> Select[str]:
    """Select the blueprints that fit, and stop where they are no longer few."""
    sources = [word.blueprints.subquery() for word in words]
    if match is Match.ALL or len(tags) == 1:
        sources += [select(BlueprintTag.blueprint_id).where(BlueprintTag.tag == tag).subquery() for tag in tags]
    elif tags:
        sources.append(select(BlueprintTag.blueprint_id).where(BlueprintTag.tag.in_(tags)).distinct().subquery())
    query = select(sources[0].c.blueprint_id)
    for source in sources[1:]:
        query = query.join(source, source.c.blueprint_id == sources[0].c.blueprint_id)
    return query.limit(FEW + 1)


async def _rarest_first(session: AsyncSession, tags: Sequence[str]) -> list[str]:
    """Sort tags by how often they are used, counted in the share of the blueprints whose digests begin with the lowest bits."""
    counts = [
        select(literal(tag), func.count()).where(BlueprintTag.tag == tag, BlueprintTag.blueprint_id < _SAMPLE)
        for tag in tags
    ]
    found = (await session.execute(union_all(*counts))).all()
    return [tag for tag, _ in sorted(found, key=lambda row: (row[1], row[0]))]


def _of_blueprints(
    query: KernelQuery, blueprint_ids: Sequence[str], tags: Sequence[str], words: Sequence[Beginning], place: Any
) -> Found:
    """Read the kernels of few blueprints, and sort them."""
    found = select(Kernel.id.label("id"), Kernel.rank.label("rank")).where(
        Kernel.blueprint_id.in_(blueprint_ids), Kernel.status.in_(_statuses(query)), *_filters(query, Kernel)
    )
    if tags or words:
        of_blueprint = blueprint_conditions(tags, query.match, words)
        found = found.join(Blueprint, Blueprint.id == Kernel.blueprint_id).where(*of_blueprint)
    # Or else the planner hopes to meet one of the few soon, while it reads all kernels in order.
    few = found.cte("few").prefix_with("MATERIALIZED")
    return _cut(select(few.c.id, few.c.rank), few.c.rank, few.c.id, query, place)


def _ordered(
    query: KernelQuery, tags: Sequence[str], needed: Sequence[str], words: Sequence[Beginning], place: Any
) -> Found:
    """Read ordered lists, one for each tag and status, until each has filled a page; then take the page from these."""
    lists = [
        _list(query, tag, status, needed, words, place).subquery()
        for tag in (tags or (None,))
        for status in _statuses(query)
    ]
    arms = [select(one.c.id.label("id"), one.c.rank.label("rank")) for one in lists]
    if len(arms) == 1:
        return arms[0]
    whole = (union(*arms) if len(tags) > 1 else union_all(*arms)).subquery()
    return select(whole.c.id, whole.c.rank).order_by(whole.c.rank, whole.c.id).limit(query.limit + 1)


def _list(
    query: KernelQuery,
    tag: str | None,
    status: KernelStatus,
    needed: Sequence[str],
    words: Sequence[Beginning],
    place: Any,
) -> Found:
    if tag is None:
        found = select(Kernel.id.label("id"), Kernel.rank.label("rank")).where(
            Kernel.status == status, *_filters(query, Kernel)
        )
        found = found.where(*(has_word(Kernel.blueprint_id, word) for word in words))
        return _cut(found, Kernel.rank, Kernel.id, query, place)
    row = KernelTag
    found = select(row.kernel_id.label("id"), row.rank.label("rank")).where(row.tag == tag, row.status == status)
    for other in needed:
        also = KernelTag.__table__.alias()
        found = found.where(exists().where(also.c.kernel_id == row.kernel_id, also.c.tag == other))
    found = found.where(*_filters(query, row))
    if words:
        found = found.join(Kernel, Kernel.id == row.kernel_id)
        found = found.where(*(has_word(Kernel.blueprint_id, word) for word in words))
    return _cut(found, row.rank, row.kernel_id, query, place)


def _cut(found: Found, rank: Any, key: Any, query: KernelQuery, place: Any) -> Found:
    """Keep what lies after the cursor and is fast enough, in order, a page and one."""
    if query.min_performance is not None:
        found = found.where(rank <= -max(query.min_performance, 0.0))
    if place is not None:
        found = found.where(tuple_(rank, key) > tuple_(literal(place[0]), literal(place[1])))
    return found.order_by(rank, key).limit(query.limit + 1)


def _statuses(query: KernelQuery) -> list[KernelStatus]:
    return list(KernelStatus) if query.status is None else [query.status]


def _filters(query: KernelQuery, of: type[Kernel] | type[KernelTag]) -> list[ColumnElement[bool]]:
    """Return what the kernel itself must fulfil; every list's index has these columns too."""
    found: list[ColumnElement[bool]] = []
    if query.device is not None:
        found.append(of.target_device == query.device)
    if query.max_latency_ms is not None:
        found.append(of.latency_ms <= query.max_latency_ms)
    if query.max_memory_mb is not None:
        found.append(of.size_bytes <= int(query.max_memory_mb * _MIB))
    if query.has_params is not None:
        found.append(of.num_params > 0 if query.has_params else of.num_params == 0)
    return found


def _shown(page: Found) -> Found:
    found = page.subquery()
    return (
        select(*_SHOWN, found.c.rank)
        .join(found, found.c.id == Kernel.id)
        .join(Blueprint, Blueprint.id == Kernel.blueprint_id)
        .order_by(found.c.rank, found.c.id)
    )


def _record(row: Any, tags: list[str]) -> KernelRecord:
    return KernelRecord(
        kernel_id=row[0], blueprint_id=row[1], name=row[2], version=row[3], tags=tags, status=row[4],
        target_device=row[5], optimization_level=row[6], compiler_version=row[7], size_bytes=row[8],
        compilation_time_ms=row[9], throughput=row[10], latency_ms=row[11], num_params=row[12],
        validation_passed=row[13], safety_checks_passed=row[14], validation_metrics=row[15],
        benchmark_results=row[16], created_at=row[17], updated_at=row[18],
    )  # fmt: skip
