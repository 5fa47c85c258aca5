"""The artifact store over HTTP for tests: a real server on loopback, in the event loop of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from esper.errors import StoreUnavailable
from esper.ports import Clock
from esper.services.rest.server import RestServer
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.application import create_app
from esper.services.urza.rest.config import UrzaConfig

_START_LIMIT_S, _STOP_LIMIT_S = 10.0, 10.0


@asynccontextmanager
async def served(
    manager: KernelManager, config: UrzaConfig | None = None, *, clock: Clock | None = None
) -> AsyncIterator[str]:
    """Serve an open library on a free port of loopback, and return its address.

    Args:
        manager: The library.
        config: Settings; host and port are set here.
        clock: Measures rates.

    Raises:
        StoreUnavailable: If it does not start.
    """
    config = (config or UrzaConfig()).model_copy(update={"port": 0})
    server = RestServer(create_app(config, manager=manager, clock=clock), config)
    running = asyncio.create_task(server._serve())
    try:
        async with asyncio.timeout(_START_LIMIT_S):
            while not server.started:
                if running.done():
                    raise StoreUnavailable("the store does not start")
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.should_exit = True
        async with asyncio.timeout(_STOP_LIMIT_S):
            await running
