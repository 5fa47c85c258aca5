"""The analyzer at work: it reads health batches from the bus."""

from esper.contracts.health import HealthBatch
from esper.contracts.topics import HEALTH
from esper.errors import BusUnavailable
from esper.ports import Delivery, MessageBus
from esper.services.oona.once import once
from esper.services.tamiyo.analysis import AnalysisResult
from esper.services.tamiyo.analyzer import AnalyzerCounts, HealthSignalAnalyzer
from esper.telemetry.logs import get_logger

GROUP = "tamiyo-service"

_log = get_logger("tamiyo.analyzer")


class AnalyzerService:
    """Analyses every health signal that the bus brings.

    Args:
        bus: Where health batches come from.
        analyzer: A new one where it is left out.

    Attributes:
        batches: Batches that were read.
    """

    def __init__(self, bus: MessageBus, analyzer: HealthSignalAnalyzer | None = None) -> None:
        self.batches = 0
        self._bus = bus
        self._analyzer = analyzer or HealthSignalAnalyzer()

    async def run(self) -> None:
        """Analyse until the bus is closed."""
        try:
            await self._bus.subscribe(HEALTH.stream, GROUP, once(self._read), start_from="0")
        except BusUnavailable as error:
            _log.warning("stream_ended", topic=HEALTH.stream, why=str(error))

    def counts(self) -> AnalyzerCounts:
        """Return what was analysed so far."""
        return self._analyzer.counts()

    async def _read(self, delivery: Delivery) -> None:
        if not isinstance(delivery.body, HealthBatch):
            return
        self.batches += 1
        for signal in delivery.body.signals:
            result = await self._analyzer.process_signal(signal)
            if result.requires_intervention:
                _tell(result, signal.step)


def _tell(result: AnalysisResult, step: int | None) -> None:
    first = result.recommendations[0]
    _log.warning(
        "place_unhealthy",
        run_id=result.run_id,
        layer_id=result.layer_id,
        seed_idx=result.seed_idx,
        step=step,
        advice=first.advice.value,
        why=first.text,
    )
