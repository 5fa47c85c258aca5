"""What the service holds while it runs."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

from esper.errors import StoreUnavailable
from esper.ports import Clock
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.callers import Callers
from esper.services.urza.rest.config import UrzaConfig
from esper.services.urza.rest.idempotency import Idempotency
from esper.services.urza.rest.immutable import Immutable
from esper.services.urza.rest.metrics import RestMetrics

if TYPE_CHECKING:
    from fastapi import FastAPI


@dataclass
class Serving:
    """The parts of one running service.

    Attributes:
        config: Its settings.
        manager: The library.
        callers: Who may use it.
        idempotency: Answers that were given before.
        metrics: What it counts.
        clock: Its time.
        immutable: Answers that cannot change.
        validated: By the id of a kernel, when it was last known to be validated, in monotonic seconds, and its size.
        draining: Whether it is about to stop.
    """

    config: UrzaConfig
    manager: KernelManager
    callers: Callers
    idempotency: Idempotency
    metrics: RestMetrics
    clock: Clock
    immutable: Immutable
    validated: dict[str, tuple[float, int]] = field(default_factory=dict)
    draining: bool = False


def serving_of(request: Request) -> Serving:
    """Return the parts of the service that a request came to.

    Raises:
        StoreUnavailable: If it is not started, or has stopped.
    """
    return serving_in(request.app)


def serving_in(app: "FastAPI") -> Serving:
    """Return the parts of a service.

    Raises:
        StoreUnavailable: If it is not started, or has stopped.
    """
    serving = cast(Serving | None, getattr(app.state, "serving", None))
    if serving is None:
        raise StoreUnavailable("the store is not open", why="the service is starting or stopping")
    return serving
