"""Health signals, one by one, against the history of their place."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from esper.contracts.adaptation import Reason
from esper.contracts.health import HealthSignal
from esper.detect.change import AlarmHold
from esper.detect.health import HealthReading, PlaceHistory
from esper.detect.trend import RunningTrend
from esper.services.tamiyo.analysis import Advice, AnalysisResult, Direction, Recommendation, Trend

OUTLIER_Z = 4.0
"""A normal metric goes further once in 16,000 signals."""
HOLD_SIGNALS = 5
"""How long an alarm stays up; a choice: a quarter of a run with twenty boundaries."""
PERSISTENT_SIGNALS = 3
"""Unusual so many times in a row is not chance: a normal metric does it once in 10¹²."""
CLEAR_ERRORS = 2.0
"""A trend is clear beyond two standard errors, as everywhere in this project."""
FEWEST_TREND_SIGNALS = 10
"""A slope of fewer values has an error that means little; as many as the warm-up takes."""
MOST_PLACES = 4096
"""Places that are followed; the one that was heard of longest ago is forgotten first."""

Key = tuple[str | None, str, int]


@dataclass(frozen=True)
class AnalyzerCounts:
    """What an analyzer has done.

    Attributes:
        signals: Signals analysed.
        warming_up: Those without enough history.
        anomalies: Those that were unusual.
        interventions: Those that ask for somebody to act.
        places: Places that are followed now.
        forgotten: Places that had to make room.
    """

    signals: int
    warming_up: int
    anomalies: int
    interventions: int
    places: int
    forgotten: int


class _Place:
    """History of one seed of one layer of one run."""

    def __init__(self, window_size: int) -> None:
        self.history = PlaceHistory()
        self.alarm = AlarmHold(HOLD_SIGNALS)
        self.unusual_in_a_row = 0
        self._window_size = window_size
        self._trends: dict[str, RunningTrend] = {}

    def observe(self, signal: HealthSignal) -> HealthReading:
        reading = self.history.observe(signal.metrics, signal.nonfinite)
        for name, metric in reading.metrics.items():
            if name not in self._trends:
                self._trends[name] = RunningTrend(self._window_size)
            self._trends[name].observe(metric.value)
        unusual = bool(reading.nonfinite) or signal.anomaly_detected or any(_outliers(reading))
        shifted = any(metric.shifted for metric in reading.metrics.values())
        self.unusual_in_a_row = self.unusual_in_a_row + 1 if unusual else 0
        self.alarm.observe(unusual or shifted)
        return reading

    def trends(self) -> dict[str, Trend]:
        return {name: _trend(running) for name, running in self._trends.items()}


class HealthSignalAnalyzer:
    """Tells, signal by signal, whether a place behaves as it did.

    Each place, that is a run, a layer and a seed, has its own history, in bounded memory.

    Args:
        window_size: Signals of a place over which its trends are taken.
    """

    def __init__(self, window_size: int = 1000) -> None:
        self._window_size = window_size
        self._places: OrderedDict[Key, _Place] = OrderedDict()
        self._signals = self._warming_up = self._anomalies = self._interventions = self._forgotten = 0

    async def process_signal(self, signal: HealthSignal) -> AnalysisResult:
        """Take a signal in and say what it tells; see `analyze`."""
        return self.analyze(signal)

    def analyze(self, signal: HealthSignal) -> AnalysisResult:
        """Take a signal in and say what it tells.

        Returns:
            Whether it is unusual, where its metrics go, and what to do.
        """
        place = self._place((signal.run_id, signal.layer_id, signal.seed_idx))
        reading = place.observe(signal)
        advice = tuple(_advice(signal, reading, place))
        result = AnalysisResult(
            signal_id=_named(signal),
            layer_id=signal.layer_id,
            seed_idx=signal.seed_idx,
            run_id=signal.run_id,
            is_anomaly=place.alarm.raised,
            requires_intervention=any(r.advice is not Advice.WATCH for r in advice),
            warming_up=reading.warming_up,
            health_score=reading.score,
            trend=place.trends(),
            recommendations=advice,
        )
        self._count(result)
        return result

    def counts(self) -> AnalyzerCounts:
        """Return what was analysed so far."""
        return AnalyzerCounts(
            signals=self._signals,
            warming_up=self._warming_up,
            anomalies=self._anomalies,
            interventions=self._interventions,
            places=len(self._places),
            forgotten=self._forgotten,
        )

    def _place(self, key: Key) -> _Place:
        if key not in self._places:
            self._places[key] = _Place(self._window_size)
            if len(self._places) > MOST_PLACES:
                self._places.popitem(last=False)
                self._forgotten += 1
        self._places.move_to_end(key)
        return self._places[key]

    def _count(self, result: AnalysisResult) -> None:
        self._signals += 1
        self._warming_up += result.warming_up
        self._anomalies += result.is_anomaly
        self._interventions += result.requires_intervention


def _named(signal: HealthSignal) -> str:
    step = "" if signal.step is None else f"@{signal.step}"
    return f"{signal.layer_id}/{signal.seed_idx}{step}"


def _outliers(reading: HealthReading) -> Iterator[str]:
    for name, metric in reading.metrics.items():
        if metric.z is not None and abs(metric.z) >= OUTLIER_Z:
            yield name


def _trend(running: RunningTrend) -> Trend:
    line = running.line()
    if line is None:
        return Trend(Direction.UNKNOWN, 0.0, math.inf, len(running))
    direction = Direction.FLAT
    if line.points < FEWEST_TREND_SIGNALS:
        direction = Direction.UNKNOWN
    elif abs(line.slope) > CLEAR_ERRORS * line.error:
        direction = Direction.RISING if line.slope > 0 else Direction.FALLING
    return Trend(direction, line.slope, line.error, line.points)


# -- what to do ----------------------------------------------------------------------------------------------------------


def _advice(signal: HealthSignal, reading: HealthReading, place: _Place) -> Iterator[Recommendation]:
    where = f"{signal.layer_id}, seed {signal.seed_idx}"
    if reading.nonfinite:
        names = ", ".join(reading.nonfinite)
        count = Reason(text=f"metrics that are not finite: {names}", name="nonfinite", value=len(reading.nonfinite))
        yield Recommendation(Advice.STOP_AND_LOOK, f"{where}: {names} is not finite; look at the loss", (count,))
    elif place.unusual_in_a_row >= PERSISTENT_SIGNALS:
        row = place.unusual_in_a_row
        lasting = Reason(text="unusual signals in a row", name="unusual", value=row, threshold=PERSISTENT_SIGNALS)
        text = f"{where}: unusual for {row} signals; do not grow here until it has settled"
        yield Recommendation(Advice.HOLD_GROWTH, text, (lasting, *_evidence(signal, reading)))
    elif place.alarm.raised:
        evidence = tuple(_evidence(signal, reading))
        told = "; ".join(reason.text for reason in evidence) or "unusual a moment ago"
        yield Recommendation(Advice.WATCH, f"{where}: {told}", evidence)


def _evidence(signal: HealthSignal, reading: HealthReading) -> Iterator[Reason]:
    outliers = set(_outliers(reading))
    for name, metric in reading.metrics.items():
        if metric.z is not None and (name in outliers or metric.shifted):
            verb = "has moved" if metric.shifted else "stands out"
            text = f"{name} {verb}: {metric.value:.3g}, expected {metric.expected:.3g}"
            yield Reason(text=text, name=name, value=metric.z, threshold=OUTLIER_Z)
    if signal.anomaly_detected:
        yield Reason(text="the sender saw an anomaly", name="anomaly_detected", value=1)
