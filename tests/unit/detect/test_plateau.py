"""A series has flattened when its fall is less than its noise tells, or than matters."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.detect.plateau import plateau


def test_a_clear_fall_is_no_plateau() -> None:
    found = plateau([1.0, 0.9, 0.8, 0.7, 0.6], least_ratio=0.01)
    assert found is not None
    assert found.fall == pytest.approx(0.4)
    assert found.error == pytest.approx(0.0, abs=1e-12)
    assert not found.flat
    assert not found.rising


def test_a_fall_below_what_matters_is_a_plateau() -> None:
    found = plateau([1.0, 0.998, 0.996, 0.994], least_ratio=0.01)
    assert found is not None
    assert found.threshold == pytest.approx(0.00994)
    assert found.flat


def test_a_fall_within_its_noise_is_a_plateau() -> None:
    found = plateau([1.0, 1.2, 0.9, 1.1, 0.95, 1.05], least_ratio=0.01)
    assert found is not None
    assert 0.01 < found.fall < 2 * found.error
    assert found.flat


def test_a_rise_is_flat_and_said_to_be_rising() -> None:
    found = plateau([0.5, 0.52, 0.55, 0.57, 0.6], least_ratio=0.01)
    assert found is not None
    assert found.flat
    assert found.rising


def test_an_exponential_decay_is_flat_once_it_has_settled_and_not_before() -> None:
    losses = [0.3 + math.exp(-n / 10) for n in range(100)]
    verdicts = [found.flat for end in range(8, 100) if (found := plateau(losses[end - 8 : end], least_ratio=0.01))]
    assert verdicts == sorted(verdicts)
    assert not verdicts[0]
    assert verdicts[-1]


def test_noise_around_a_level_is_called_falling_in_about_one_of_twenty_cases() -> None:
    random = np.random.default_rng(4)
    found = [plateau(list(1 + 0.1 * random.standard_normal(8)), least_ratio=0.0) for _ in range(2000)]
    # t with 6 degrees of freedom exceeds 2 with probability 0.046.
    assert np.mean([f is not None and not f.flat for f in found]) == pytest.approx(0.046, abs=0.015)


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=20), st.floats(0.01, 100))
def test_the_verdict_does_not_depend_on_the_unit(losses: list[float], factor: float) -> None:
    one, other = (plateau([loss * f for loss in losses], least_ratio=0.01) for f in (1.0, factor))
    assert one is not None
    assert other is not None
    assert other.fall == pytest.approx(one.fall * factor, rel=1e-6, abs=1e-9 * factor)
    if abs(one.fall - one.threshold) > 1e-6:
        assert one.flat == other.flat


@pytest.mark.parametrize("losses", [[], [1.0, 2.0], [1.0, math.nan, 1.0], [1.0, 1.0, math.inf], [-1e308, 1.0, 1e308]])
def test_there_is_no_verdict_without_three_finite_losses(losses: list[float]) -> None:
    assert plateau(losses, least_ratio=0.01) is None
