"""The analyzer reads health batches from the real bus until it is closed."""

import asyncio
import io
import json
from datetime import UTC, datetime

from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.topics import HEALTH
from esper.ports import Acknowledge, DeliveryHandler
from esper.services.oona.memory_bus import MemoryBus
from esper.services.tamiyo.analyzer import HealthSignalAnalyzer
from esper.services.tamiyo.analyzer_service import GROUP, AnalyzerService
from esper.telemetry import logs

LIMIT_S = 10.0
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _batch(step: int, nonfinite: tuple[str, ...] = ()) -> HealthBatch:
    signals = tuple(
        HealthSignal(layer_id=layer, seed_idx=0, timestamp=NOW, metrics={"grad_norm": 1.0}, step=step, nonfinite=bad)
        for layer, bad in (("a", ()), ("b", nonfinite))
    )
    return HealthBatch(run_id="run-1", step=step, signals=signals)


async def _until(bus: MemoryBus, handled: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while GROUP not in (groups := bus.counts()[HEALTH.stream].groups) or groups[GROUP].handled < handled:  # noqa: ASYNC110 — the bus has no event for it
            await asyncio.sleep(0.001)


async def test_every_signal_of_every_batch_is_analysed_those_sent_before_the_start_included() -> None:
    async with MemoryBus() as bus:
        service = AnalyzerService(bus)
        await bus.publish(HEALTH.stream, _batch(100))
        running = asyncio.create_task(service.run())
        for step in (200, 300):
            await bus.publish(HEALTH.stream, _batch(step))
        await _until(bus, 3)
        await bus.close()
        async with asyncio.timeout(LIMIT_S):
            await running
    assert service.batches == 3
    assert service.counts().signals == 6
    assert service.counts().places == 2


async def test_a_place_that_needs_somebody_is_logged_with_its_reason() -> None:
    stream = io.StringIO()
    with logs.to_terminal(stream, json=True):
        async with MemoryBus() as bus:
            service = AnalyzerService(bus, HealthSignalAnalyzer())
            running = asyncio.create_task(service.run())
            await bus.publish(HEALTH.stream, _batch(100, nonfinite=("grad_norm",)))
            await _until(bus, 1)
            await bus.close()
            await running
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert (line["event"], line["layer_id"], line["advice"], line["step"]) == (
        "place_unhealthy", "b", "stop_and_look", 100,
    )  # fmt: skip


async def test_a_batch_that_arrives_twice_is_analysed_once() -> None:
    class Doubling(MemoryBus):
        async def subscribe(
            self,
            stream: str,
            group: str,
            handler: DeliveryHandler,
            *,
            start_from: str = ">",
            acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
        ) -> None:
            async def twice(delivery: object) -> None:
                await handler(delivery)  # type: ignore[arg-type]
                await handler(delivery)  # type: ignore[arg-type]

            await super().subscribe(stream, group, twice, start_from=start_from, acknowledge=acknowledge)

    async with Doubling() as bus:
        service = AnalyzerService(bus)
        running = asyncio.create_task(service.run())
        await bus.publish(HEALTH.stream, _batch(100))
        await _until(bus, 1)
        await bus.close()
        await running
    assert service.counts().signals == 2


async def test_a_closed_bus_ends_the_service_at_once() -> None:
    bus = MemoryBus()
    await bus.close()
    async with asyncio.timeout(LIMIT_S):
        await AnalyzerService(bus).run()
