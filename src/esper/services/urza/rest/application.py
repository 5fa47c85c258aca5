"""The application: endpoints, gate, errors, and the parts behind them while it runs."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from esper import __version__
from esper.errors import EsperError
from esper.ports import Clock
from esper.runtime.clock import SystemClock
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.services.urza.outbox import OutboxRelay
from esper.services.urza.rest.answers import on_esper_error, on_http_error, on_invalid
from esper.services.urza.rest.blobs import blobs
from esper.services.urza.rest.blueprints import blueprints
from esper.services.urza.rest.callers import Callers
from esper.services.urza.rest.collecting import collecting
from esper.services.urza.rest.config import UrzaConfig
from esper.services.urza.rest.description import described
from esper.services.urza.rest.gate import Gate
from esper.services.urza.rest.idempotency import Idempotency
from esper.services.urza.rest.immutable import Immutable
from esper.services.urza.rest.jobs import jobs
from esper.services.urza.rest.kernels import kernels
from esper.services.urza.rest.metrics import RestMetrics
from esper.services.urza.rest.operations import operations
from esper.services.urza.rest.state import Serving
from esper.services.urza.stores import opened
from esper.telemetry.logs import get_logger

TITLE = "Urza - Central Artifact Storage"
_log = get_logger("urza.rest")


def create_app(
    config: UrzaConfig | Callable[[], UrzaConfig], *, manager: KernelManager | None = None, clock: Clock | None = None
) -> FastAPI:
    """Make the application.

    Args:
        config: Its settings, or what reads them when it starts.
        manager: A library that is open, and stays so; by default one is opened as the settings say.
        clock: Measures rates, and leases of a library that is opened here.
    """
    clock = clock or SystemClock()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with serving(config() if callable(config) else config, manager, clock) as parts:
            app.state.serving = parts
            try:
                yield
            finally:
                app.state.serving = None

    app = FastAPI(title=TITLE, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    for router in (kernels, blueprints, jobs, blobs, operations):
        app.router.routes.extend(router.routes)
    app.add_exception_handler(EsperError, on_esper_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_middleware(Gate, service=app)
    app.openapi = partial(_described_once, app)  # type: ignore[method-assign]
    return app


def _described_once(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = described(app)
    return app.openapi_schema


@asynccontextmanager
async def serving(config: UrzaConfig, manager: KernelManager | None, clock: Clock) -> AsyncIterator[Serving]:
    """Open the parts of the service, and close them after the block."""
    async with AsyncExitStack() as stack:
        if manager is None:
            manager = await stack.enter_async_context(await opened(config, clock))
        parts = Serving(
            config=config,
            manager=manager,
            callers=Callers(config, ApiKeys(manager.database, clock), clock),
            idempotency=Idempotency(manager.database),
            metrics=RestMetrics(),
            clock=clock,
            immutable=Immutable(config.cache_bytes),
        )
        if config.bus_url is not None:
            await stack.enter_async_context(_relaying(manager, parts.metrics, config.bus_url.get_secret_value()))
        collector = manager.collector(config.retention)
        await stack.enter_async_context(collecting(collector, config.collect_every_s, parts.metrics))
        _log.info("store_open", needs_keys=config.needs_keys, postgres=config.database_url is not None)
        yield parts


@asynccontextmanager
async def _relaying(manager: KernelManager, metrics: RestMetrics, bus_url: str) -> AsyncIterator[None]:
    """Publish announcements while the service runs, and measure the bus that they go to."""
    from esper.services.oona.redis_bus import RedisBus
    from esper.services.oona.redis_config import RedisBusConfig
    from esper.services.oona.redis_desk import RedisDesk
    from esper.services.oona.watch import FiguresWatch
    from esper.telemetry.bus_metrics import BusCollector

    config = RedisBusConfig(url=bus_url)
    async with (
        RedisBus(config) as bus,
        FiguresWatch(RedisDesk(config), bus) as watch,
        OutboxRelay(manager.outbox, bus),
    ):
        metrics.registry.register(BusCollector({"shared": watch}))
        yield
