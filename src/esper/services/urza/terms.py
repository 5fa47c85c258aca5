"""Terms: what blueprints and kernels are found by. A tag is a term with a mark before it; a word of the name is one as it is."""

import re
from hashlib import sha256

TAG_MARK = "#"
"""No word has it, and it comes before every letter and digit."""
AFTER_TAGS = "$"
"""The text after every tag and before every word."""
SIGNATURE_BITS = 62
"""A signed number of 64 bits is the same in both databases; its sign is left alone."""

_WORD = re.compile(r"[^\W_]+")
_LAST = chr(0x10FFFF)


def words_of(name: str) -> list[str]:
    """Return the words of a name in small letters, each once: runs of letters and digits."""
    return sorted(set(_WORD.findall(name.lower())))


def tag_term(tag: str) -> str:
    """Return the term of a tag."""
    return TAG_MARK + tag


def after(beginning: str) -> str:
    """Return a text that comes after every word with a beginning."""
    return beginning + _LAST


def asked_for(name: str | None) -> list[str]:
    """Return the words that a name which is looked for has; for one without letters and digits what no term begins with."""
    return (words_of(name) or [_LAST]) if name else []


def bits_of(term: str) -> int:
    """Return two bits that stand for a term in a signature, which is the bits of all terms of a blueprint together.

    A row whose signature lacks one of them has not the term, and need not be looked at closely.

    References:
        Bloom 1970, "Space/time trade-offs in hash coding with allowable errors"; `SQL_BITS` says the same to PostgreSQL.
    """
    digest = sha256(term.encode("utf-8", "replace")).digest()
    return 1 << digest[0] % SIGNATURE_BITS | 1 << digest[1] % SIGNATURE_BITS


SQL_BITS = " | ".join(
    f"(1::bigint << (get_byte(sha256(convert_to({{term}}, 'UTF8')), {place}) % {SIGNATURE_BITS}))" for place in (0, 1)
)
"""`bits_of` as PostgreSQL computes it, with ``{term}`` for the column."""
