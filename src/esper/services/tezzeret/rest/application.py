"""The application of the forge: its endpoints, and the parts behind them while it runs."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from pydantic import SecretStr

from esper.errors import ConfigError
from esper.ir import BlueprintIR
from esper.ports import Clock, MessageBus
from esper.runtime.clock import SystemClock
from esper.services.clients.urza_client import UrzaClient
from esper.services.rest.application import Described, application
from esper.services.rest.caller import Caller, Right
from esper.services.rest.callers import Callers
from esper.services.rest.metrics import RequestMetrics
from esper.services.rest.state import Parts
from esper.services.tezzeret.executor import Executor
from esper.services.tezzeret.identity import Identity
from esper.services.tezzeret.inference.sealing import moment
from esper.services.tezzeret.pool import ForgePool, PoolConfig
from esper.services.tezzeret.rest.config import TezzeretConfig
from esper.services.tezzeret.rest.kernels import kernels
from esper.services.tezzeret.rest.metrics import WorkerCollector
from esper.services.tezzeret.rest.operations import operations
from esper.services.tezzeret.rest.state import Forging
from esper.services.tezzeret.screening import ForgeLimits
from esper.services.tezzeret.worker import TezzeretWorker
from esper.telemetry.logs import get_logger

TITLE = "Tezzeret - Compilation Forge"
ABOUT = """Builds blueprints that wait in the store, and runs kernels on generated input.

Errors are problems as RFC 9457 has them, with a stable `code`."""

_log = get_logger("tezzeret.rest")


class Token:
    """The one key that a forge may have been given; its holder may do everything.

    Args:
        token: The key, or None where there is none.
    """

    def __init__(self, token: SecretStr | None) -> None:
        self._digest = None if token is None else _digest(token.get_secret_value())

    async def holder(self, token: str) -> Caller | None:
        """Return the holder of the key, or None."""
        if self._digest is None or not hmac.compare_digest(self._digest, _digest(token)):
            return None
        return Caller("token", frozenset(Right))


class Store(UrzaClient):
    """The store, as runs of kernels see it."""

    async def architecture_of(self, kernel_id: str) -> BlueprintIR:
        """Return the design of a kernel."""
        record = await self.get_kernel(kernel_id)
        return BlueprintIR.from_json(await self.get_architecture(record.blueprint_id))


def create_app(config: TezzeretConfig | Callable[[], TezzeretConfig], *, clock: Clock | None = None) -> FastAPI:
    """Make the application.

    Args:
        config: Its settings, or what reads them when it starts.
        clock: Measures rates, and dates seals.
    """

    def opened() -> AbstractAsyncContextManager[Parts]:
        return serving(config() if callable(config) else config, clock or SystemClock())

    return application(Described(TITLE, ABOUT), (kernels, operations), opened)


@asynccontextmanager
async def serving(config: TezzeretConfig, clock: Clock) -> AsyncIterator[Forging]:
    """Open the parts of the forge, work while the block lasts, and drain after it.

    Raises:
        ConfigError: If others may call and no token is set, or its key cannot be used.
        BusUnavailable: If a bus is set and does not answer at the beginning.
    """
    if config.needs_keys and config.token is None:
        raise ConfigError(
            f"the forge does not listen on {config.host} without a key",
            why="beyond loopback every caller needs one, and none is set",
            todo="set ESPER_TEZZERET_TOKEN, or listen on 127.0.0.1",
            code="ESP-2572",
        )
    identity = Identity.established(config.root, name="forge", now=moment(clock))
    assert identity.key is not None
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store(config.urza_url, key=config.urza_key, clock=clock))
        bus = await _bus(stack, config)
        worker = TezzeretWorker(config.worker, queue=store, bus=bus)
        limits = ForgeLimits(memory_limit_mb=config.memory_limit_mb, deadline_s=config.execution_limit_s)
        runs = ForgePool(
            PoolConfig(
                limits=limits,
                extensions=config.extensions,
                fork_per_job=config.fork_per_job,
                scratch_mb=config.scratch_mb,
            )
        )
        stack.push_async_callback(runs.close)
        metrics = RequestMetrics("tezzeret")
        metrics.registry.register(WorkerCollector(worker))
        working = asyncio.create_task(worker.run())
        working.add_done_callback(_told)
        _log.info("forge_open", key_id=identity.key.key_id, workers=config.num_workers, needs_keys=config.needs_keys)
        try:
            yield Forging(
                config=config,
                callers=Callers(config, Token(config.token), clock),
                metrics=metrics,
                clock=clock,
                worker=worker,
                working=working,
                executor=Executor(store, runs, identity.ring),
                store=store,
                key_id=identity.key.key_id,
            )
        finally:
            await worker.drain(limit_s=config.job_limit_s)
            await asyncio.wait({working})


async def _bus(stack: AsyncExitStack, config: TezzeretConfig) -> MessageBus | None:
    if config.bus_url is None:
        return None
    from esper.services.oona.redis_bus import RedisBus
    from esper.services.oona.redis_config import RedisBusConfig

    bus = RedisBus(RedisBusConfig(url=config.bus_url.get_secret_value()))
    return await stack.enter_async_context(bus)


def _told(working: "asyncio.Task[None]") -> None:
    """Log why a forge works no more."""
    if not working.cancelled() and (error := working.exception()) is not None:
        _log.error("forge_broken", exc_info=error)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
