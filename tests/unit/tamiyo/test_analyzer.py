"""Signals are told apart by place, held against their own history, and lead to advice with its evidence."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from esper.contracts.health import HealthSignal
from esper.services.tamiyo import HealthSignalAnalyzer
from esper.services.tamiyo.analysis import Advice, AnalysisResult, Direction
from esper.services.tamiyo.analyzer import HOLD_SIGNALS, MOST_PLACES

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _signal(
    value: float = 2.0, *, layer: str = "fc", seed: int = 0, run: str | None = "run-1", **fields: object
) -> HealthSignal:
    given: dict[str, object] = {"metrics": {"grad_norm": value}, **fields}
    return HealthSignal(layer_id=layer, seed_idx=seed, timestamp=NOW, run_id=run, **given)  # type: ignore[arg-type]


def _healthy(analyzer: HealthSignalAnalyzer, *, signals: int = 40, seed: int = 0) -> list[AnalysisResult]:
    values = np.random.default_rng(seed).normal(2.0, 0.1, signals)
    return [analyzer.analyze(_signal(float(value), step=100 * n)) for n, value in enumerate(values)]


def _after(values: Sequence[float]) -> list[AnalysisResult]:
    analyzer = HealthSignalAnalyzer()
    _healthy(analyzer)
    return [analyzer.analyze(_signal(value)) for value in values]


async def test_process_signal_is_the_analysis_as_a_coroutine() -> None:
    one, other = HealthSignalAnalyzer(), HealthSignalAnalyzer(window_size=1000)
    assert await one.process_signal(_signal(step=5)) == other.analyze(_signal(step=5))


def test_a_result_names_layer_seed_and_step() -> None:
    result = HealthSignalAnalyzer().analyze(_signal(layer="layer3.conv", seed=1, step=2400))
    assert result.signal_id == "layer3.conv/1@2400"
    assert (result.layer_id, result.seed_idx, result.run_id) == ("layer3.conv", 1, "run-1")
    assert HealthSignalAnalyzer().analyze(_signal()).signal_id == "fc/0"


def test_warm_up_is_said_and_judges_nothing() -> None:
    results = _healthy(HealthSignalAnalyzer(), signals=11)
    assert [result.warming_up for result in results] == [True] * 10 + [False]
    assert [result.health_score for result in results[:10]] == [None] * 10
    assert not any(result.is_anomaly for result in results[:10])
    assert results[10].health_score is not None


def test_healthy_signals_raise_few_alarms_and_ask_for_nobody() -> None:
    results = [result for seed in range(20) for result in _healthy(HealthSignalAnalyzer(), signals=200, seed=seed)]
    assert sum(result.is_anomaly for result in results) / len(results) < 0.01
    assert not any(result.requires_intervention for result in results)


def test_an_outlier_is_watched_for_a_while_and_needs_nobody() -> None:
    results = _after([9.0, *[2.0] * (HOLD_SIGNALS + 1)])
    assert [result.is_anomaly for result in results] == [True] * HOLD_SIGNALS + [False] * 2
    assert not any(result.requires_intervention for result in results)
    (first,) = results[0].recommendations
    assert first.advice is Advice.WATCH
    assert first.text == "fc, seed 0: grad_norm stands out: 9, expected 2.04"
    assert [(reason.name, reason.threshold) for reason in first.evidence] == [("grad_norm", 4.0)]
    assert first.evidence[0].value > 20
    assert results[1].recommendations[0].text == "fc, seed 0: unusual a moment ago"
    assert results[-1].recommendations == ()


def test_what_stays_unusual_asks_for_somebody() -> None:
    results = _after([200.0, 210.0, 190.0, 205.0])
    assert [result.requires_intervention for result in results] == [False, False, True, True]
    (advice,) = results[2].recommendations
    assert advice.advice is Advice.HOLD_GROWTH
    assert advice.text == "fc, seed 0: unusual for 3 signals; do not grow here until it has settled"
    assert (advice.evidence[0].value, advice.evidence[0].threshold) == (3, 3)


def test_what_is_not_finite_asks_for_somebody_at_once_even_in_warm_up() -> None:
    result = HealthSignalAnalyzer().analyze(_signal(nonfinite=("loss",)))
    assert (result.health_score, result.is_anomaly, result.requires_intervention) == (0.0, True, True)
    assert result.recommendations[0].advice is Advice.STOP_AND_LOOK
    assert "loss is not finite" in result.recommendations[0].text
    assert HealthSignalAnalyzer().analyze(_signal(math.nan)).requires_intervention


def test_a_lasting_shift_is_called_one() -> None:
    results = _after([2.35, 2.38, 2.36, 2.37])
    texts = [r.text for result in results for r in result.recommendations]
    assert any("grad_norm has moved" in text for text in texts)


def test_what_the_sender_saw_counts() -> None:
    result = HealthSignalAnalyzer().analyze(_signal(anomaly_detected=True))
    assert result.is_anomaly
    assert [reason.name for reason in result.recommendations[0].evidence] == ["anomaly_detected"]


def test_places_do_not_share_their_history() -> None:
    analyzer = HealthSignalAnalyzer()
    _healthy(analyzer)
    for other in (
        _signal(50.0, layer="head"),
        _signal(50.0, seed=1),
        _signal(50.0, run="run-2"),
        _signal(50.0, run=None),
    ):
        assert analyzer.analyze(other).warming_up
    assert analyzer.analyze(_signal(50.0)).is_anomaly


def test_a_trend_is_told_with_its_error() -> None:
    analyzer = HealthSignalAnalyzer()
    random = np.random.default_rng(1)
    results = [
        analyzer.analyze(_signal(metrics={"up": 1 + 0.01 * n + 0.001 * z, "flat": 1 + 0.001 * z, "down": -0.1 * n}))
        for n, z in enumerate(random.standard_normal(50))
    ]
    trends = results[-1].trend
    assert {name: trend.direction for name, trend in trends.items()} == {
        "up": Direction.RISING, "flat": Direction.FLAT, "down": Direction.FALLING,
    }  # fmt: skip
    assert trends["up"].slope == pytest.approx(0.01, rel=0.02)
    assert trends["up"].signals == 50
    assert results[1].trend["up"].direction is Direction.UNKNOWN


def test_trends_are_taken_over_the_window() -> None:
    analyzer = HealthSignalAnalyzer(window_size=20)
    for n in range(100):
        result = analyzer.analyze(_signal(float(n) if n < 60 else 200.0 - n))
    assert result.trend["grad_norm"].signals == 20
    assert result.trend["grad_norm"].slope == pytest.approx(-1.0)


def test_the_place_heard_of_longest_ago_makes_room() -> None:
    analyzer = HealthSignalAnalyzer(window_size=3)
    for n in range(MOST_PLACES + 2):
        analyzer.analyze(_signal(layer=f"layer{n}"))
        analyzer.analyze(_signal(layer="layer0"))
    counts = analyzer.counts()
    assert (counts.places, counts.forgotten) == (MOST_PLACES, 2)
    assert analyzer.analyze(_signal(layer="layer0")).trend["grad_norm"].signals == 3


def test_the_counts_say_what_was_found() -> None:
    analyzer = HealthSignalAnalyzer()
    _healthy(analyzer)
    analyzer.analyze(_signal(nonfinite=("loss",)))
    counts = analyzer.counts()
    assert (counts.signals, counts.warming_up, counts.places) == (41, 10, 1)
    assert counts.anomalies >= 1
    assert counts.interventions == 1
