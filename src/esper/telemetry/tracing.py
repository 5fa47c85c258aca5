"""The trace that the work at hand belongs to, as the W3C writes it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from esper.errors import ContractError

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def traceparent() -> str | None:
    """Return the trace context of the work at hand, or None where nobody traces it."""
    return _current.get()


def usable(context: str | None) -> str | None:
    """Return a trace context that was received, or None where it is not one: a reader then starts a trace of its own."""
    return context if context is not None and _TRACEPARENT.fullmatch(context) else None


@contextmanager
def traced(context: str | None) -> Iterator[None]:
    """Let what is published within the block belong to a trace; None leaves it to none.

    Args:
        context: A ``traceparent``, such as ``00-<32 hex digits>-<16 hex digits>-01``.

    Raises:
        ContractError: If it is not one.

    References:
        W3C Recommendation, "Trace Context", section 3.2.
    """
    if context is not None and usable(context) is None:
        raise ContractError(
            f"{context[:80]!r} is no trace context",
            why="it is not version, trace, parent and flags in hexadecimal digits",
            todo="give a traceparent such as 00-<32 digits>-<16 digits>-01",
        )
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
