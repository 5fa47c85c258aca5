"""Words of names."""

import re

_WORD = re.compile(r"[^\W_]+")
_LAST = chr(0x10FFFF)


def words_of(name: str) -> list[str]:
    """Return the words of a name in small letters, each once: runs of letters and digits."""
    return sorted(set(_WORD.findall(name.lower())))


def after(beginning: str) -> str:
    """Return a text that comes after every word with a beginning."""
    return beginning + _LAST


def asked_for(name: str | None) -> list[str]:
    """Return the words that a name which is looked for has; one without letters and digits has itself, and finds nothing."""
    return (words_of(name) or [name]) if name else []
