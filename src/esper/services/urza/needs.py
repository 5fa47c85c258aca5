"""What somebody looks for, as needs: terms of which one will do, or a word that begins in a certain way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Select,
    String,
    and_,
    any_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
)

from esper.contracts.store import Match
from esper.services.urza.models import BlueprintTerm, KernelTerm
from esper.services.urza.reader import Reader
from esper.services.urza.terms import after, asked_for, bits_of, tag_term

FEW_WORDS = 8
"""Up to so many words with one beginning are looked for one by one."""


@dataclass(frozen=True)
class Need:
    """Something that must hold of a blueprint.

    Attributes:
        terms: One of them will do.
        beginning: A word that begins so will do, where there are many of these; then there are no terms.
    """

    terms: tuple[str, ...]
    beginning: str | None = None

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing has it."""
        return not self.terms and self.beginning is None

    @property
    def num_terms(self) -> int | None:
        """How many terms will do; None for a beginning. Needs with the same number have the same conditions."""
        return None if self.beginning is not None else len(self.terms)

    def values(self, name: str) -> dict[str, object]:
        """Return the values of `condition` and `likely` under the same name."""
        if self.beginning is not None:
            return {f"{name}_from": self.beginning, f"{name}_to": after(self.beginning)}
        terms = {f"{name}_{number}": term for number, term in enumerate(self.terms)}
        return terms | {f"{name}_{number}_bits": bits_of(term) for number, term in enumerate(self.terms)}


@dataclass(frozen=True)
class Condition:
    """A need without its values, as a statement has it.

    Attributes:
        name: Begins the names of its values.
        num_terms: How many terms will do; None for a beginning.
    """

    name: str
    num_terms: int | None

    def of(self, term: Any) -> ColumnElement[bool]:
        """The condition that a row's term will do."""
        if self.num_terms is None:
            return and_(term >= bindparam(f"{self.name}_from"), term < bindparam(f"{self.name}_to"))
        given: list[BindParameter[str]] = [bindparam(f"{self.name}_{number}") for number in range(self.num_terms)]
        found: ColumnElement[bool] = term == given[0] if len(given) == 1 else term.in_(given)
        return found

    def likely(self, signature: Any) -> list[ColumnElement[bool]]:
        """What the signature of every row that fulfils the need fulfils, and of few others."""
        masks: list[BindParameter[int]] = [
            bindparam(f"{self.name}_{number}_bits") for number in range(self.num_terms or 0)
        ]
        found = [signature.bitwise_and(mask) == mask for mask in masks]
        return [or_(*found)] if found else []

    def holds_for(self, row: type[BlueprintTerm] | type[KernelTerm], key: Any) -> ColumnElement[bool]:
        """The condition that a blueprint or kernel has such a term.

        It is looked up for each row, as a value: the planner would make a join of what is called EXISTS, and read whole lists.
        """
        own = row.__table__.alias()
        is_it = own.c.blueprint_id if row is BlueprintTerm else own.c.kernel_id
        found: Select[Any] = select(literal_column("1")).where(is_it == key, self.of(own.c.term)).limit(1)
        return found.scalar_subquery().is_not(None)


def one_of(column: Any, name: str, *, arrays: bool) -> ColumnElement[bool]:
    """The condition that a column is one of the texts that are given under a name, as one value where there are arrays."""
    if arrays:
        return column == any_(bindparam(name, type_=ARRAY(String)))  # type: ignore[no-any-return]
    return column.in_(bindparam(name, expanding=True))  # type: ignore[no-any-return]


async def needs_of(reader: Reader, tags: Sequence[str], match: Match, name: str | None) -> list[Need]:
    """Return what tags and words of a name come to; the words that begin as those do are looked up."""
    terms = [tag_term(tag) for tag in sorted(set(tags))]
    alternatives = [tuple(terms)] if terms and match is Match.ANY else [(term,) for term in terms]
    return [Need(one) for one in alternatives] + [await _looked_up(reader, word) for word in asked_for(name)]


async def _looked_up(reader: Reader, beginning: str) -> Need:
    rows = await reader.rows(_WORDS, {"beginning": beginning, "end": after(beginning)})
    words = tuple(word for (word,) in rows if word is not None)
    return Need(words) if len(words) <= FEW_WORDS else Need((), beginning)


@dataclass(frozen=True)
class _Words:
    """Asks which words have a beginning, and stops where they are no longer few."""

    def statement(self, *, arrays: bool) -> Select[str]:
        """Jump from word to word in the index, however many blueprints have each."""
        term, end = BlueprintTerm.term, bindparam("end", type_=String)
        first = select(func.min(term).label("word")).where(term >= bindparam("beginning"), term < end)
        jump = first.cte("words", recursive=True)
        following = select(func.min(term)).where(term > jump.c.word, term < end).scalar_subquery()
        jump = jump.union_all(select(following).where(jump.c.word.is_not(None)))
        return select(jump.c.word).limit(FEW_WORDS + 2)


_WORDS = _Words()
