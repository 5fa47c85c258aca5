"""The health score is one minus the largest two-sided tail mass of a place's metrics against their own history."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esper.detect.health import MOST_METRICS, PlaceHistory, health_score


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=5))
def test_the_score_is_one_minus_the_largest_central_mass(z_scores: list[float]) -> None:
    masses = [2 * stats.norm.cdf(abs(z)) - 1 for z in z_scores]
    score = health_score(z_scores)
    assert score == pytest.approx(1 - max(masses), abs=1e-12)
    assert score is not None
    assert 0.0 <= score <= 1.0


def test_an_ordinary_value_is_healthy_and_an_extreme_one_is_not() -> None:
    assert health_score([0.0]) == 1.0
    assert health_score([1.959963984540054]) == pytest.approx(0.05)
    assert health_score([0.0, 40.0]) == pytest.approx(0.0, abs=1e-300)


def test_the_score_of_one_healthy_metric_is_uniform() -> None:
    scores = [health_score([float(z)]) for z in np.random.default_rng(1).standard_normal(2000)]
    assert stats.kstest(scores, "uniform").pvalue > 0.01


def test_there_is_no_score_without_a_history_and_zero_where_something_is_not_finite() -> None:
    assert health_score([]) is None
    assert health_score([], nonfinite=True) == 0.0
    assert health_score([0.0], nonfinite=True) == 0.0


def _settled(random: np.random.Generator, steps: int = 40) -> PlaceHistory:
    place = PlaceHistory()
    for value in random.normal(2.0, 0.1, steps):
        place.observe({"grad_norm": float(value), "weight_norm": 10.0})
    return place


def test_a_place_warms_up_then_scores() -> None:
    place = PlaceHistory()
    readings = [place.observe({"grad_norm": 1.0 + 0.1 * (n % 3)}) for n in range(11)]
    assert [reading.score for reading in readings[:10]] == [None] * 10
    assert all(reading.warming_up for reading in readings[:10])
    assert readings[10].score is not None
    assert not readings[10].warming_up


def test_an_exploding_gradient_is_seen_and_named() -> None:
    reading = _settled(np.random.default_rng(2)).observe({"grad_norm": 20.0, "weight_norm": 10.0})
    assert reading.score is not None
    assert reading.score < 1e-6
    z = {name: metric.z for name, metric in reading.metrics.items()}
    assert z["grad_norm"] is not None
    assert z["grad_norm"] > 20
    assert z["weight_norm"] == 0.0


def test_what_is_not_finite_scores_zero_and_leaves_the_history_alone() -> None:
    place, untouched = (_settled(np.random.default_rng(3)) for _ in range(2))
    reading = place.observe({"grad_norm": math.nan, "weight_norm": 10.0}, nonfinite=("loss",))
    assert reading.score == 0.0
    assert reading.nonfinite == ("grad_norm", "loss")
    assert place.observe({"grad_norm": 2.05}).metrics == untouched.observe({"grad_norm": 2.05}).metrics


def test_a_value_that_has_exploded_counts_as_not_finite() -> None:
    reading = _settled(np.random.default_rng(3)).observe({"grad_norm": 1e200})
    assert (reading.score, reading.nonfinite) == (0.0, ("grad_norm",))


def test_a_lasting_shift_is_told_from_an_outlier() -> None:
    random = np.random.default_rng(4)
    outlier = _settled(random)
    spike = [outlier.observe({"grad_norm": v}).metrics["grad_norm"].shifted for v in (9.0, 2.0, 2.1, 1.9)]
    assert not any(spike)
    shifted = _settled(random)
    assert any(shifted.observe({"grad_norm": 4.0}).metrics["grad_norm"].shifted for _ in range(4))


def test_norms_that_grow_as_in_training_raise_nothing() -> None:
    random = np.random.default_rng(5)
    place = PlaceHistory()
    norms = 3 * np.sqrt(1 + np.arange(200) / 20) * (1 + 0.001 * random.standard_normal(200))
    readings = [place.observe({"weight_norm": float(norm)}).metrics["weight_norm"] for norm in norms]
    assert not any(reading.shifted for reading in readings)
    assert max(abs(reading.z) for reading in readings if reading.z is not None) < 4


def test_a_sender_of_ever_new_names_does_not_fill_the_memory() -> None:
    place = PlaceHistory()
    reading = place.observe({f"metric{n}": 1.0 for n in range(10 * MOST_METRICS)})
    assert len(reading.metrics) == MOST_METRICS
