"""What the forge holds while it runs."""

import asyncio
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from esper.services.clients.urza_client import UrzaClient
from esper.services.rest.state import Parts, parts_of
from esper.services.tezzeret.executor import Executor
from esper.services.tezzeret.rest.config import TezzeretConfig
from esper.services.tezzeret.worker import TezzeretWorker


@dataclass(kw_only=True)
class Forging(Parts):
    """The parts of one running forge.

    Attributes:
        worker: Builds what waits in the store.
        working: The task in which it does; it ends when the service stops, and not before.
        executor: Runs kernels.
        store: The store.
        key_id: The key that it signs with.
    """

    config: TezzeretConfig
    worker: TezzeretWorker
    working: "asyncio.Task[None]"
    executor: Executor
    store: UrzaClient
    key_id: str


def forging_of(request: Request) -> Forging:
    """Return the parts of the forge that a request came to.

    Raises:
        Unavailable: If it is not started, or has stopped.
    """
    return cast(Forging, parts_of(request))
