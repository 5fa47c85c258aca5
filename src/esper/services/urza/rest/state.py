"""What the service holds while it runs."""

from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from esper.services.rest.state import Parts, parts_of
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.config import UrzaConfig
from esper.services.urza.rest.immutable import Immutable
from esper.services.urza.rest.metrics import RestMetrics


@dataclass(kw_only=True)
class Serving(Parts):
    """The parts of one running store.

    Attributes:
        manager: The library.
        immutable: Answers that cannot change.
        validated: By the id of a kernel, when it was last known to be validated, in monotonic seconds, and its size.
    """

    config: UrzaConfig
    metrics: RestMetrics
    manager: KernelManager
    immutable: Immutable
    validated: dict[str, tuple[float, int]] = field(default_factory=dict)


def serving_of(request: Request) -> Serving:
    """Return the parts of the store that a request came to.

    Raises:
        Unavailable: If it is not started, or has stopped.
    """
    return cast(Serving, parts_of(request))
