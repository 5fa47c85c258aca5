"""Lines and their errors agree with scipy, also when they are kept up value by value."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from esper.detect.trend import Line, RunningTrend, fit_line


def test_a_known_line_is_found_with_its_known_error() -> None:
    line = fit_line([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0])
    assert line == Line(
        slope=0.8, error=pytest.approx((1.8 / 2 / 5) ** 0.5), end=pytest.approx(3.7), span=3.0, points=4
    )
    assert line.rise == pytest.approx(2.4)
    assert line.rise_error == pytest.approx(3 * line.error)


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=40), st.floats(0.1, 100))
def test_slope_and_error_agree_with_scipy(values: list[float], step: float) -> None:
    assume(len(set(values)) > 1)  # scipy has no error for a constant
    xs = [step * n for n in range(len(values))]
    line, oracle = fit_line(xs, values), stats.linregress(xs, values)
    size = max(map(abs, values)) / step + 1e-12
    assert line.slope == pytest.approx(oracle.slope, rel=1e-6, abs=1e-9 * size)
    assert line.error == pytest.approx(oracle.stderr, rel=1e-4, abs=1e-6 * size)
    assert line.end == pytest.approx(oracle.intercept + oracle.slope * xs[-1], rel=1e-6, abs=1e-6 * size * step)


def test_the_error_is_the_spread_of_the_slope_over_repeated_experiments() -> None:
    random = np.random.default_rng(2)
    lines = [fit_line(range(12), list(0.1 * np.arange(12) + random.standard_normal(12))) for _ in range(2000)]
    assert np.std([line.slope for line in lines]) == pytest.approx(
        np.sqrt(np.mean([line.error**2 for line in lines])), rel=0.05
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=80), st.integers(3, 20), st.floats(-1e5, 1e5))
def test_a_running_trend_is_the_line_through_its_window(values: list[float], window: int, offset: float) -> None:
    running = RunningTrend(window)
    for n, value in enumerate(values):
        running.observe(value + offset)
        held = [v + offset for v in values[max(0, n + 1 - window) : n + 1]]
        line = running.line()
        if len(held) < 3:
            assert line is None
            continue
        expected = fit_line(range(len(held)), held)
        assert line is not None
        assert (line.points, line.span) == (expected.points, expected.span)
        assert line.slope == pytest.approx(expected.slope, rel=1e-6, abs=1e-6)
        assert line.error == pytest.approx(expected.error, rel=1e-4, abs=1e-3)
        assert line.end == pytest.approx(expected.end, rel=1e-6, abs=1e-5)


def test_rounding_does_not_add_up_over_a_long_series() -> None:
    random = np.random.default_rng(3)
    values = 1e6 + np.cumsum(random.standard_normal(20_000))
    running = RunningTrend(100)
    for value in values:
        running.observe(float(value))
    line, expected = running.line(), fit_line(range(100), list(values[-100:]))
    assert line is not None
    assert line.slope == pytest.approx(expected.slope, rel=1e-9)
    assert line.error == pytest.approx(expected.error, rel=1e-9)


@pytest.mark.parametrize(("xs", "ys"), [([0, 1], [1, 2]), ([0, 1, 2], [1, 2]), ([0, 1, 1], [1, 2, 3])])
def test_points_without_a_line_are_refused(xs: list[float], ys: list[float]) -> None:
    with pytest.raises(ValueError, match=r"trend needs|must rise"):
        fit_line(xs, ys)


def test_an_exploded_value_has_a_line_and_no_overflow() -> None:
    line = fit_line([0, 1, 2], [1.0, 2.0, 1e300])
    assert line.slope == pytest.approx(5e299)
    assert line.error == pytest.approx(1e300 / 12**0.5)
