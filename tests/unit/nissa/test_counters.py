"""Counters read from the real bus what the parts of a run told each other."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from esper.contracts.adaptation import Action, AdaptationDecision, Outcome, Verdict
from esper.contracts.events import CompilationEvent
from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.topics import COMPILATIONS, DECISIONS, HEALTH, OUTCOMES, Message
from esper.ports import Acknowledge, DeliveryHandler
from esper.services.nissa.counters import RunCounters
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig

LIMIT_S = 10.0


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    async with MemoryBus(MemoryBusConfig(retry_delay_s=0.001)) as bus:
        yield bus


def _batch(*nonfinite: tuple[str, ...]) -> HealthBatch:
    signals = tuple(
        HealthSignal(layer_id="fc", seed_idx=0, timestamp=datetime.now(UTC), metrics={}, nonfinite=bad)
        for bad in nonfinite
    )
    return HealthBatch(run_id="run-1", step=1, signals=signals)


def _load() -> AdaptationDecision:
    return AdaptationDecision(action=Action.LOAD_KERNEL, target_layer="fc", kernel_id="sha256:0", strategy="plateau")


def _outcome(verdict: Verdict) -> Outcome:
    return Outcome(
        decision_id="d", run_id="run-1", slot="fc", seed_idx=0, blueprint="b", kernel_id="k", verdict=verdict,
        gain=None, gain_error=None, params=1, steps=1,
    )  # fmt: skip


def _done(bus: MemoryBus) -> int:
    return sum(group.handled + group.dead for stream in bus.counts().values() for group in stream.groups.values())


async def _settled(bus: MemoryBus, expected: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while _done(bus) < expected:  # noqa: ASYNC110 — the bus has no event for it
            await asyncio.sleep(0.001)


async def _counted(bus: MemoryBus, counters: RunCounters, messages: list[tuple[str, Message]]) -> None:
    for stream, message in messages:
        await bus.publish(stream, message)
    running = asyncio.create_task(counters.run())
    await _settled(bus, len(messages))
    await bus.close()
    async with asyncio.timeout(LIMIT_S):
        await running


async def test_every_kind_of_message_is_counted_by_what_it_says(bus: MemoryBus) -> None:
    counters = RunCounters(bus)
    messages: list[tuple[str, Message]] = [
        (HEALTH.stream, _batch((), (), ("grad_norm",))),
        (HEALTH.stream, _batch(())),
        (DECISIONS.stream, AdaptationDecision(reason="early")),
        (DECISIONS.stream, _load()),
        (DECISIONS.stream, _load()),
        (OUTCOMES.stream, _outcome(Verdict.KEPT)),
        (OUTCOMES.stream, _outcome(Verdict.CULLED)),
        (COMPILATIONS.stream, CompilationEvent(blueprint_id="b", status="started")),
        (COMPILATIONS.stream, CompilationEvent(blueprint_id="b", status="compiled")),
    ]
    await _counted(bus, counters, messages)
    assert counters.snapshot() == {
        "messages": {HEALTH.stream: 2, DECISIONS.stream: 3, OUTCOMES.stream: 2, COMPILATIONS.stream: 2},
        "failures": {},
        "health_signals": {"finite": 3, "nonfinite": 1},
        "decisions": {"load_kernel": 2, "none": 1},
        "adaptations": {"plateau": 2},
        "compilations": {"compiled": 1, "started": 1},
        "outcomes": {"culled": 1, "kept": 1},
    }


async def test_nothing_is_counted_as_nothing(bus: MemoryBus) -> None:
    counters = RunCounters(bus)
    await _counted(bus, counters, [])
    assert all(not counts for counts in counters.snapshot().values())


class _OneStreamFails(MemoryBus):
    async def subscribe(
        self,
        stream: str,
        group: str,
        handler: DeliveryHandler,
        *,
        start_from: str = ">",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        if stream == HEALTH.stream:
            raise RuntimeError("planted")
        await super().subscribe(stream, group, handler, start_from=start_from, acknowledge=acknowledge)


async def test_a_stream_that_cannot_be_read_does_not_stop_the_others() -> None:
    async with _OneStreamFails() as bus:
        counters = RunCounters(bus)
        await _counted(bus, counters, [(DECISIONS.stream, _load())])
    assert counters.snapshot()["failures"] == {HEALTH.stream: 1}
    assert counters.snapshot()["decisions"] == {"load_kernel": 1}


async def test_a_message_that_cannot_be_counted_goes_to_the_dead_letters_and_the_next_is_counted(
    bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = RunCounters(bus)
    count = counters._count

    def refuse_loads(message: Message) -> None:
        if isinstance(message, AdaptationDecision) and message.action is Action.LOAD_KERNEL:
            raise RuntimeError("planted")
        count(message)

    monkeypatch.setattr(counters, "_count", refuse_loads)
    await _counted(bus, counters, [(DECISIONS.stream, _load()), (DECISIONS.stream, AdaptationDecision(reason="no"))])
    assert counters.snapshot()["messages"] == {DECISIONS.stream: 1}
    assert counters.snapshot()["failures"] == {DECISIONS.stream: 3}
    assert bus.counts()[DECISIONS.stream].groups["nissa-counters"].dead == 1


async def test_a_message_that_arrives_twice_counts_once(bus: MemoryBus) -> None:
    counters = RunCounters(bus)
    handlers: list[DeliveryHandler] = []

    class Recording(MemoryBus):
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
                handlers.append(handler)
                await handler(delivery)  # type: ignore[arg-type]
                await handler(delivery)  # type: ignore[arg-type]

            await super().subscribe(stream, group, twice, start_from=start_from, acknowledge=acknowledge)

    async with Recording() as other:
        counters = RunCounters(other)
        await _counted(other, counters, [(DECISIONS.stream, _load())])
    assert len(handlers) == 1
    assert counters.snapshot()["decisions"] == {"load_kernel": 1}


async def test_counters_that_start_after_the_bus_was_closed_end_at_once(bus: MemoryBus) -> None:
    await bus.close()
    counters = RunCounters(bus)
    async with asyncio.timeout(LIMIT_S):
        await counters.run()
    assert counters.snapshot()["failures"] == {}
