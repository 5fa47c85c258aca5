"""Which blueprints fulfil several needs, as long as they are few; and which need is the rarest."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sqlalchemy import (
    BindParameter,
    CompoundSelect,
    Integer,
    Select,
    bindparam,
    func,
    literal_column,
    select,
    union_all,
)

from esper.services.urza.models import BlueprintPair, BlueprintTerm
from esper.services.urza.needs import Condition, Need
from esper.services.urza.reader import Reader

FEW = 100
"""Up to so many blueprints they are read and sorted, which takes about a millisecond."""

_SAMPLE: Any = literal_column("'sha256:04'")
"""One digest in 64 is less; digests are as good as random, so this is a fair sample of the blueprints."""


async def fitting(reader: Reader, needs: Sequence[Need], few: int) -> list[str] | None:
    """Return the blueprints that fulfil all needs, or None where there are more than few.

    Two needs whose terms are known are answered from pairs, where a blueprint that has not both is no row at all.
    """
    known = [need for need in needs if need.beginning is None]
    begun = [need for need in needs if need.beginning is not None]
    values: dict[str, object] = {"most": few + 1}
    pairs = alone = mixed = 0
    if len(known) > 1:
        rest = known[2:] + begun
        for one, other in product(known[0].terms, known[1].terms):
            if one == other:
                values[f"alone{alone}"] = one
                alone += 1
            else:
                values[f"first{pairs}"], values[f"second{pairs}"] = min(one, other), max(one, other)
                pairs += 1
    elif known and not begun:
        rest, alone = [], len(known[0].terms)
        values |= {f"alone{number}": term for number, term in enumerate(known[0].terms)}
    elif known:
        rest, mixed = begun[1:], len(known[0].terms)
        values |= begun[0].values("begun") | {f"mixed{number}": term for number, term in enumerate(known[0].terms)}
    else:
        rest = begun[1:]
        values |= begun[0].values("begun")
    for number, need in enumerate(rest):
        values |= need.values(f"also{number}")
    rows = await reader.rows(_Fitting(pairs, alone, mixed, tuple(need.num_terms for need in rest)), values)
    return None if len(rows) > few else sorted({row[0] for row in rows})


async def rarest_first(reader: Reader, needs: Sequence[Need]) -> list[Need]:
    """Sort needs by how often they are fulfilled, counted in a sample; those that only begin come last."""
    known = [need for need in needs if need.beginning is None]
    if len(known) > 1:
        values = {
            name: value for number, need in enumerate(known) for name, value in need.values(f"need{number}").items()
        }
        rows = await reader.rows(_Counts(tuple(len(need.terms) for need in known)), values)
        known = [known[number] for _, number in sorted((count, number) for number, count in rows)]
    return known + [need for need in needs if need.beginning is not None]


@dataclass(frozen=True)
class _Fitting:
    """Asks which blueprints have both terms of one of some pairs, or a term alone; or a word with a beginning.

    Attributes:
        pairs: How many pairs.
        alone: How many terms that are enough alone.
        mixed: How many terms, of which one must be there beside a word with the beginning.
        also: What else they must have: how many terms will do, or None for a beginning.
    """

    pairs: int
    alone: int
    mixed: int
    also: tuple[int | None, ...]

    def statement(self, *, arrays: bool) -> Select[Any]:
        """Read one list after the other, and stop where there are enough."""
        pair, row = BlueprintPair, BlueprintTerm
        lists: list[Select[Any]] = [
            select(pair.blueprint_id).where(
                pair.first == bindparam(f"first{n}"), pair.second == bindparam(f"second{n}")
            )
            for n in range(self.pairs)
        ]
        lists += [select(row.blueprint_id).where(row.term == bindparam(f"alone{n}")) for n in range(self.alone)]
        begun = Condition("begun", None)
        for number in range(self.mixed):
            term: BindParameter[str] = bindparam(f"mixed{number}")
            # The beginning may itself begin the term, which is then enough alone.
            lists += [
                select(pair.blueprint_id).where(pair.first == term, begun.of(pair.second)),
                select(pair.blueprint_id).where(pair.second == term, begun.of(pair.first)),
                select(row.blueprint_id).where(row.term == term, begun.of(row.term)),
            ]
        if not lists:
            lists = [select(row.blueprint_id).where(begun.of(row.term)).distinct()]
        found = (lists[0] if len(lists) == 1 else union_all(*lists)).subquery()
        also = [Condition(f"also{number}", terms) for number, terms in enumerate(self.also)]
        conditions = [one.holds_for(BlueprintTerm, found.c.blueprint_id) for one in also]
        return select(found.c.blueprint_id).where(*conditions).limit(bindparam("most", type_=Integer))


@dataclass(frozen=True)
class _Counts:
    """Asks how many blueprints of the sample fulfil each of some needs, given how many terms will do for each."""

    needs: tuple[int, ...]

    def statement(self, *, arrays: bool) -> CompoundSelect[Any]:
        """Count each from the index."""
        row = BlueprintTerm
        return union_all(
            *(
                select(literal_column(str(number)), func.count()).where(
                    Condition(f"need{number}", terms).of(row.term), row.blueprint_id < _SAMPLE
                )
                for number, terms in enumerate(self.needs)
            )
        )
