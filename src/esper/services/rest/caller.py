"""Who asks."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

from starlette.types import Scope

from esper.errors import Rejected

CALLER = "esper.caller"


class Right(StrEnum):
    """What a key allows; `WRITE` includes `READ`, and `ADMIN` both."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


_INCLUDED = {
    Right.READ: {Right.READ},
    Right.WRITE: {Right.READ, Right.WRITE},
    Right.ADMIN: {Right.READ, Right.WRITE, Right.ADMIN},
}


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        name: Id of the key, or ``loopback`` for a process of this machine without one.
        rights: What it may do.
    """

    name: str
    rights: frozenset[Right] = field(default_factory=frozenset)

    def check(self, needed: Right) -> None:
        """Refuse what the caller may not do.

        Raises:
            Rejected: If the right is missing.
        """
        if not any(needed in _INCLUDED[right] for right in self.rights):
            raise Rejected(
                "the key does not allow this",
                why=f"it has {', '.join(sorted(self.rights)) or 'no rights'}, and this takes {needed}",
                todo=f"use a key with the scope {needed}",
                code="ESP-7511",
            )


LOCAL = Caller("loopback", frozenset(Right))
NOBODY = Caller("nobody")


def caller_of(scope: Scope) -> Caller:
    """Return who sent a request; nobody where the gate did not ask."""
    return cast(Caller, scope.get(CALLER, NOBODY))
