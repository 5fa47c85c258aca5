"""The application: endpoints, gate, errors, and the parts behind them while it runs."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.types import Scope

from esper.ir import ops
from esper.ports import Clock
from esper.runtime.clock import SystemClock
from esper.services.rest.answers import REQUEST_ID
from esper.services.rest.application import Described, application
from esper.services.rest.caller import Caller
from esper.services.rest.callers import Callers
from esper.services.rest.gate import Rules, writes
from esper.services.rest.state import Parts
from esper.services.urza.audit import Deed, done_by
from esper.services.urza.kernel_manager import KernelManager, collector_of
from esper.services.urza.keys import ApiKeys
from esper.services.urza.outbox import OutboxRelay
from esper.services.urza.rest.blobs import blobs
from esper.services.urza.rest.blueprints import before_transaction, blueprints
from esper.services.urza.rest.collecting import collecting
from esper.services.urza.rest.config import UrzaConfig
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
ABOUT = """Blueprints, kernels, their lineage, the queue of the forge, and outcomes of grafts.

Errors are problems as RFC 9457 has them, with a stable `code`. Lists are arrays; the next page is in the `Link` header.
What has a content address never changes and may be kept for ever."""
ADMIN_PATHS = re.compile(r"/api/v1/(audit|(kernels|blueprints)/[^/]+/status)")
BLOB_PATHS = re.compile(r"/api/v1/blobs/[^/]+")
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

    def opened() -> AbstractAsyncContextManager[Parts]:
        return serving(config() if callable(config) else config, manager, clock)

    routers = (kernels, blueprints, jobs, blobs, operations)
    return application(Described(TITLE, ABOUT, idempotent=True), routers, opened, rules)


def rules(parts: Parts) -> Rules:
    """Return what the store asks of its gate: long blobs, paths for administrators, and a note of every write."""
    config = parts.config
    assert isinstance(config, UrzaConfig)
    return Rules(
        admin_paths=ADMIN_PATHS,
        long_paths=BLOB_PATHS,
        max_long_bytes=config.max_blob_bytes,
        stall_limit_s=config.stall_limit_s,
        within=_noted,
    )


def _noted(scope: Scope, caller: Caller) -> AbstractContextManager[None]:
    return done_by(Deed(caller.name, scope["method"], scope["path"], scope[REQUEST_ID]) if writes(scope) else None)


@asynccontextmanager
async def serving(config: UrzaConfig, manager: KernelManager | None, clock: Clock) -> AsyncIterator[Serving]:
    """Open the parts of the service, and close them after the block.

    Raises:
        ConfigError: If an extension cannot be imported, or the database not be used.
    """
    ops.install(config.extensions)
    async with AsyncExitStack() as stack:
        if manager is None:
            manager = await stack.enter_async_context(await opened(config, clock))
        metrics = RestMetrics()
        parts = Serving(
            config=config,
            manager=manager,
            callers=Callers(config, ApiKeys(manager.database, clock), clock),
            idempotency=Idempotency(manager.database, partial(before_transaction, manager)),
            metrics=metrics,
            clock=clock,
            immutable=Immutable(config.cache_bytes),
        )
        if config.bus_url is not None:
            await stack.enter_async_context(_relaying(manager, metrics, config.bus_url.get_secret_value()))
        collector = collector_of(manager, config.retention)
        await stack.enter_async_context(collecting(collector, config.collect_every_s, metrics))
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
        manager.line,
    ):
        metrics.registry.register(BusCollector({"shared": watch}))
        yield
