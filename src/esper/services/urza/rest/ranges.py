"""Parts of bytes, as a caller asks for them.

References:
    RFC 9110, section 14.
"""

import re

from starlette.requests import Request

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


def range_of(request: Request, tag: str) -> tuple[int | None, int | None] | None:
    """Return first and last byte as they were asked for, or None for the whole.

    What cannot be read, several ranges, and a range of bytes with another tag mean the whole, as the standard has it.
    """
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match.groups() == ("", "") or request.headers.get("if-range", tag) != tag:
        return None
    first, last = (int(text) if text else None for text in match.groups())
    if first is not None and last is not None and last < first:
        return None
    return first, last


def placed(wanted: tuple[int | None, int | None], size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last, or None where there is nothing of it."""
    first, last = wanted
    if first is None:
        length = min(last or 0, size)
        return (size - length, size) if length else None
    end = size if last is None else min(last + 1, size)
    return (first, end) if first < end else None
