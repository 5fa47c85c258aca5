"""What happened in a run, counted from the messages that its parts sent."""

import asyncio
from typing import TypeAlias

from esper.contracts.adaptation import Action, AdaptationDecision, Outcome
from esper.contracts.events import CompilationEvent
from esper.contracts.health import HealthBatch
from esper.contracts.topics import COMPILATIONS, DECISIONS, EPOCHS, HEALTH, OUTCOMES, Message, Topic
from esper.errors import BusUnavailable
from esper.ports import Delivery, MessageBus
from esper.services.oona.once import once
from esper.telemetry.logs import get_logger
from esper.telemetry.metrics import BoundedLabel, Metrics, counted

HEALTH_GROUP = "nissa-execution"
GROUP = "nissa-counters"
TOPICS = (HEALTH, DECISIONS, OUTCOMES, COMPILATIONS, EPOCHS)

Snapshot: TypeAlias = dict[str, dict[str, int]]

_log = get_logger("nissa.counters")


class RunCounters:
    """Counts messages, health signals, decisions, compilations and outcomes.

    Each stream is read on its own: one that fails leaves the rest going.

    Args:
        bus: Where messages come from.
        metrics: Where they are counted; new ones where it is left out.
        run_id: Whose messages are counted; a bus may still hold some of a run that was killed. None: everybody's.
    """

    def __init__(self, bus: MessageBus, metrics: Metrics | None = None, *, run_id: str | None = None) -> None:
        self.metrics = metrics or Metrics()
        self._bus, self._run_id = bus, run_id
        self._strategies, self._statuses = BoundedLabel(), BoundedLabel()

    async def run(self) -> None:
        """Count until the bus is closed."""
        async with asyncio.TaskGroup() as tasks:
            for topic in TOPICS:
                tasks.create_task(self._follow(topic))

    def snapshot(self) -> Snapshot:
        """Return what was counted so far: for each kind of thing a number by label."""
        metrics = self.metrics
        return {
            "messages": counted(metrics.messages, "topic"),
            "failures": counted(metrics.failures, "topic"),
            "health_signals": counted(metrics.health_signals, "state"),
            "decisions": counted(metrics.decisions, "action"),
            "adaptations": counted(metrics.adaptations, "strategy"),
            "compilations": counted(metrics.compilations, "status"),
            "outcomes": counted(metrics.outcomes, "verdict"),
        }

    async def _follow(self, topic: Topic) -> None:
        group = HEALTH_GROUP if topic is HEALTH else GROUP
        try:
            await self._bus.subscribe(topic.stream, group, once(self._read), start_from="0")
        except BusUnavailable:
            _log.info("stream_ended", topic=topic.stream)
        except Exception:  # One stream that cannot be read must not end the others; the failure is counted and logged.
            self.metrics.failures.labels(topic.stream).inc()
            _log.exception("stream_failed", topic=topic.stream)

    async def _read(self, delivery: Delivery) -> None:
        if self._run_id is not None and delivery.run_id not in (None, self._run_id):
            return
        try:
            self._count(delivery.body)
        except Exception:
            self.metrics.failures.labels(delivery.stream).inc()
            raise
        self.metrics.messages.labels(delivery.stream).inc()

    def _count(self, message: Message) -> None:
        metrics = self.metrics
        match message:
            case HealthBatch(signals=signals):
                bad = sum(bool(signal.nonfinite) for signal in signals)
                metrics.health_signals.labels("finite").inc(len(signals) - bad)
                metrics.health_signals.labels("nonfinite").inc(bad)
            case AdaptationDecision(action=action, strategy=strategy):
                metrics.decisions.labels(action).inc()
                if action is not Action.NONE:
                    metrics.adaptations.labels(action, self._strategies.of(strategy)).inc()
            case Outcome(verdict=verdict):
                metrics.outcomes.labels(verdict).inc()
            case CompilationEvent(status=status):
                metrics.compilations.labels(self._statuses.of(status)).inc()
            case _:
                return  # counted as a message of its topic
