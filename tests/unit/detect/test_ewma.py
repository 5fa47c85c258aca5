"""A value is held against the smoothed past of its own series, and outliers do not spoil that past."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from esper.detect.ewma import CONSISTENCY, CUT, RobustEwma, _biweight
from esper.detect.scale import repeated_median_line, robust_scale


def _scores(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", **settings: float) -> list[float]:
    ewma = RobustEwma(**settings)  # type: ignore[arg-type]
    return [z for value in values if (z := ewma.observe(float(value))) is not None]


def test_the_bounded_loss_of_a_standard_normal_residual_is_one_on_average() -> None:
    mean, _ = integrate.quad(lambda z: _biweight(z) * stats.norm.pdf(z), -12, 12, points=[-CUT, CUT])
    assert mean == pytest.approx(1.0, abs=0.005)  # the published constant has two decimals
    assert _biweight(CUT) == _biweight(100.0) == CONSISTENCY


def test_the_scale_estimates_the_standard_deviation_of_normal_samples() -> None:
    random = np.random.default_rng(3)
    for n in (10, 11, 30):
        scales = [robust_scale(list(random.normal(5.0, 2.0, n))) for _ in range(1500)]
        assert np.mean(scales) == pytest.approx(2.0, rel=0.03)


def test_four_of_ten_wrong_values_do_not_blow_the_scale_up() -> None:
    random = np.random.default_rng(4)
    scales = [robust_scale([*random.standard_normal(6), 1e6, 2e6, 3e6, -5e6]) for _ in range(50)]
    assert max(scales) < 10


def test_the_repeated_median_line_agrees_with_scipy_and_ignores_outliers() -> None:
    random = np.random.default_rng(5)
    values = 2.0 - 0.3 * np.arange(11) + random.normal(0, 0.1, 11)
    expected = stats.siegelslopes(values)
    intercept, slope = repeated_median_line(list(values))
    assert slope == pytest.approx(expected.slope)
    assert intercept == pytest.approx(np.median(values - slope * np.arange(11)))
    values[[2, 5, 8]] = 1e6
    assert repeated_median_line(list(values))[1] == pytest.approx(-0.3, abs=0.1)


def test_there_is_no_score_before_the_warm_up_is_over() -> None:
    ewma = RobustEwma(warm_up=12)
    assert [ewma.observe(float(n % 3)) for n in range(12)] == [None] * 12
    assert not ewma.warming_up
    assert ewma.observe(1.0) is not None


def test_scores_of_normal_noise_are_nearly_standard_normal() -> None:
    random = np.random.default_rng(6)
    scores = np.concatenate([_scores(random.normal(3.0, 0.5, 300))[30:] for _ in range(40)])
    assert abs(scores.mean()) < 0.05
    assert scores.std() == pytest.approx(1.05, abs=0.05)
    assert (np.abs(scores) > 4).mean() < 0.002


def test_a_steady_drift_is_no_news() -> None:
    random = np.random.default_rng(7)
    drift = np.arange(300) * 0.5
    scores = np.concatenate([_scores(drift + random.standard_normal(300))[30:] for _ in range(20)])
    assert abs(scores.mean()) < 0.05
    assert scores.std() == pytest.approx(1.05, abs=0.07)


def test_without_the_slope_the_level_lags_behind_a_drift() -> None:
    drift = np.arange(200) * 0.5 + np.random.default_rng(8).standard_normal(200)
    assert np.mean(_scores(drift, slope_smoothing=0.0)[50:]) > 0.5


def test_one_outlier_scores_high_and_leaves_the_past_alone() -> None:
    random = np.random.default_rng(9)
    ewma = RobustEwma()
    for value in random.standard_normal(200):
        ewma.observe(float(value))
    scale, forecast = ewma.scale, ewma.forecast
    z = ewma.observe(1e6)
    assert z is not None
    assert z > 1e5
    assert ewma.scale == pytest.approx(scale * math.sqrt(1 + 0.1 * (CONSISTENCY - 1)))
    assert abs(ewma.forecast - forecast) < 0.5 * scale


def test_a_lasting_shift_becomes_the_new_normal() -> None:
    random = np.random.default_rng(10)
    scores = _scores(np.concatenate([random.standard_normal(60), 20 + random.standard_normal(120)]))
    assert max(scores[50:53]) > 10
    assert np.abs(scores[-20:]).max() < 4


def test_a_constant_series_scores_zero_and_a_jitter_below_the_resolution_stays_small() -> None:
    ewma = RobustEwma(resolution=0.01)
    for _ in range(20):
        ewma.observe(5.0)
    assert ewma.observe(5.0) == 0.0
    assert ewma.observe(5.0 * 1.005) == pytest.approx(0.5)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=15, max_size=60),
    st.floats(0.1, 100),
    st.floats(-1e3, 1e3),
)
def test_scores_do_not_depend_on_the_unit(values: list[float], factor: float, offset: float) -> None:
    noisy = np.array(values) + np.random.default_rng(1).normal(0, 10, len(values))
    plain, moved = (RobustEwma(resolution=1e-12) for _ in range(2))
    for value in noisy:
        one, other = plain.observe(float(value)), moved.observe(float(value) * factor + offset)
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert other == pytest.approx(one, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e101])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        RobustEwma().observe(value)


@pytest.mark.parametrize("settings", [{"smoothing": 0.0}, {"slope_smoothing": 1.5}, {"warm_up": 9}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|at least 10"):
        RobustEwma(**settings)  # type: ignore[arg-type]
