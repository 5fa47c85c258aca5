"""Collects garbage now and again while the service runs."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from esper.errors import Unavailable
from esper.services.urza.garbage import GarbageCollector
from esper.services.urza.rest.metrics import RestMetrics
from esper.telemetry.logs import get_logger

_log = get_logger("urza.rest")
# The system's own: processes of one service shall not collect at the same moment.
_DICE = random.SystemRandom()


@asynccontextmanager
async def collecting(collector: GarbageCollector, every_s: float, metrics: RestMetrics) -> AsyncIterator[None]:
    """Collect every so often until the block ends; a collection that fails is counted, and the next one comes.

    Args:
        collector: What collects; one that is ended in its midst harms nothing.
        every_s: From one collection to the next, in the mean; 0 collects never.
        metrics: Counts.
    """
    if not every_s:
        yield
        return
    task = asyncio.create_task(_repeat(collector, every_s, metrics))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _repeat(collector: GarbageCollector, every_s: float, metrics: RestMetrics) -> None:
    while True:
        await asyncio.sleep(_DICE.uniform(0.5, 1.5) * every_s)
        try:
            done = await collector.collect()
        except Unavailable as error:
            metrics.collections.labels("unavailable").inc()
            _log.warning("garbage_not_collected", why=str(error))
        except Exception as error:  # a fault of ours must not end all collections to come
            metrics.collections.labels("failed").inc()
            _log.error("garbage_not_collected", exc_info=error)
        else:
            metrics.collections.labels("done").inc()
            metrics.collected_bytes.inc(done.size_bytes)
            _log.info("garbage_collected", **vars(done))
