"""How an error travels over HTTP: one table, read by servers and clients alike.

References:
    RFC 9457, "Problem Details for HTTP APIs".
"""

from pydantic import BaseModel, ConfigDict, Field

from esper.errors import (
    ConfigError,
    Conflict,
    ContractError,
    DeadlineExceeded,
    EsperError,
    GraftFailed,
    InvalidBlueprint,
    NotFound,
    Rejected,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
IDEMPOTENCY_KEY = "Idempotency-Key"
"""Header of a request that may be sent again: the same key and body are answered as the first time."""

STATUSES: tuple[tuple[type[EsperError], int], ...] = (
    (ContractError, 422),
    (NotFound, 404),
    (Conflict, 409),
    (Rejected, 422),
    (DeadlineExceeded, 504),
    (Unavailable, 503),
    (ConfigError, 400),
    (GraftFailed, 500),
    (EsperError, 500),
)
"""The first class that fits gives the status."""

CODES: dict[str, int] = {
    "ESP-7510": 401,
    "ESP-7511": 403,
    "ESP-4720": 429,
    "ESP-3410": 413,
    "ESP-3411": 408,
    "ESP-3412": 415,
    "ESP-3413": 405,
    "ESP-3414": 400,
    "ESP-3415": 416,
    "ESP-3416": 422,
}
"""Codes whose status says more than their class."""

RETRIED = frozenset({429, 502, 503, 504})
"""Statuses after which another try may help."""


class Problem(BaseModel):
    """The body of an answer that is an error.

    Attributes:
        type: What kind of problem, as a reference into the documentation.
        title: Name of the error's class.
        status: The HTTP status.
        detail: The whole sentence.
        code: Stable code.
        what: What failed.
        why: The reason.
        todo: What the caller can do about it.
        path: JSON path of the fault, where a blueprint has one.
        request_id: Id of the request, which the server's log has too.
    """

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    code: str = EsperError.default_code
    what: str = ""
    why: str = ""
    todo: str = ""
    path: str | None = None
    request_id: str | None = Field(default=None)


def status_of(error: EsperError) -> int:
    """Return the HTTP status of an error."""
    listed = CODES.get(error.code)
    return listed or next(status for kind, status in STATUSES if isinstance(error, kind))


def problem_of(error: EsperError, *, request_id: str | None = None) -> Problem:
    """Return what is sent for an error."""
    return Problem(
        type=f"urn:esper:error:{error.code}",
        title=type(error).__name__,
        status=status_of(error),
        detail=str(error),
        code=error.code,
        what=error.what,
        why=error.why,
        todo=error.todo,
        path=error.path if isinstance(error, InvalidBlueprint) else None,
        request_id=request_id,
    )


def error_of(problem: Problem) -> EsperError:
    """Return the error that a server sent, as the class that it was; an unknown class becomes the one of its status."""
    kind = _classes().get(problem.title) or _by_status(problem.status)
    what = problem.what or problem.detail or f"the server answered {problem.status}"
    if kind is InvalidBlueprint:
        path = problem.path or "$"
        return InvalidBlueprint(
            what.removesuffix(f" at {path}"), path=path, why=problem.why, todo=problem.todo, code=problem.code
        )
    return kind(what, why=problem.why, todo=problem.todo, code=problem.code)


def _by_status(status: int) -> type[EsperError]:
    if status in RETRIED:
        return Unavailable
    if status == 404:
        return NotFound
    if status == 409:
        return Conflict
    return ContractError if 400 <= status < 500 else Unavailable


def _classes() -> dict[str, type[EsperError]]:
    """Return every class of the tree that is made of its sentence alone, by name."""
    found: dict[str, type[EsperError]] = {}
    waiting: list[type[EsperError]] = [EsperError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting.extend(kind.__subclasses__())
    found.pop("ChildDied", None)  # takes other arguments, and means a child of the server's own
    return found
