"""What a service holds while it runs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from starlette.requests import Request
from starlette.responses import Response

from esper.errors import Unavailable
from esper.ports import Clock
from esper.services.rest.callers import Callers
from esper.services.rest.config import RestConfig
from esper.services.rest.metrics import RequestMetrics

if TYPE_CHECKING:
    from fastapi import FastAPI


class Idempotent(Protocol):
    """Knows answers that were given before."""

    async def answered(self, request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
        """Return the answer that the key of a request got, or do the work and keep its answer."""
        ...


@dataclass(kw_only=True)
class Parts:
    """The parts that every running service has.

    Attributes:
        config: Its settings.
        callers: Who may use it.
        metrics: What it counts.
        clock: Its time.
        idempotency: Answers that were given before, or None where every request may simply be done again.
        draining: Whether it is about to stop.
    """

    config: RestConfig
    callers: Callers
    metrics: RequestMetrics
    clock: Clock
    idempotency: Idempotent | None = None
    draining: bool = field(default=False)


def parts_of(request: Request) -> Parts:
    """Return the parts of the service that a request came to.

    Raises:
        Unavailable: If it is not started, or has stopped.
    """
    return parts_in(request.app)


def parts_in(app: "FastAPI") -> Parts:
    """Return the parts of a service.

    Raises:
        Unavailable: If it is not started, or has stopped.
    """
    parts = cast(Parts | None, getattr(app.state, "serving", None))
    if parts is None:
        raise Unavailable("the service is not open", why="it is starting or stopping", todo="try again")
    return parts
