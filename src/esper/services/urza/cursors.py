"""Where a page begins, as text that callers hand back unread."""

import base64
import binascii
import json

from esper.errors import ContractError


def written(*place: str | float | int) -> str:
    """Return a place in a list as text."""
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def place_of(cursor: str, *kinds: type) -> tuple[str | float | int, ...]:
    """Return the place that a text means.

    Args:
        cursor: The text.
        kinds: Type of each part.

    Raises:
        ContractError: If it is no cursor of such a list.
    """
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _no_cursor() from error
    if not isinstance(found, list) or len(found) != len(kinds):
        raise _no_cursor()
    if not all(isinstance(part, kind) and not isinstance(part, bool) for part, kind in zip(found, kinds, strict=True)):
        raise _no_cursor()
    return tuple(found)


def _no_cursor() -> ContractError:
    return ContractError("the cursor cannot be used", todo="give the one that came with a page of this list")
