"""A graft is kept by default and undone on clear harm, measured against windows without a graft."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.services.tolaria.acceptance import judge, placebo


def test_windows_that_a_graft_touches_are_left_out() -> None:
    losses = [1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0]
    found = placebo(losses, [3], length=1)
    assert found is not None
    assert (found.spread, found.windows) == (0.0, 6)


def test_the_spread_is_that_of_windows_of_equal_length() -> None:
    losses = [float(value) for value in (5, 4, 4, 3, 1, 1)]
    found = placebo(losses, [], length=3)
    assert found is not None
    changes = [3 - 5, 1 - 4, 1 - 4]
    assert found.spread == pytest.approx(math.sqrt(sum(c * c for c in changes) / 3))


def test_too_few_windows_of_equal_length_scale_the_shorter_ones_as_a_random_walk() -> None:
    losses = [0.0, 1.0, 0.0, 1.0, 0.0]
    found = placebo(losses, [], length=4)
    assert found is not None
    assert found.windows == 3
    assert found.spread == pytest.approx(math.sqrt(4 / 2) * 0.0)


def test_a_loss_that_is_not_finite_leaves_its_windows_out() -> None:
    found = placebo([1.0, math.nan, 1.0, 2.0, 1.0, 2.0], [], length=1)
    assert found is not None
    assert (found.spread, found.windows) == (1.0, 3)


def test_a_steady_drift_is_no_harm_of_the_graft() -> None:
    for step in (-0.01, 0.01):
        losses = [1.0 + step * n for n in range(20)]
        control = placebo(losses, [10], length=4)
        assert not judge(losses[10], losses[14] + 1e-7, control).harmful
        assert judge(losses[10], losses[14] + 0.2, control).harmful


def test_without_windows_there_is_no_spread_and_a_graft_is_kept() -> None:
    assert placebo([1.0, 2.0], [], length=5) is None
    assert not judge(1.0, 5.0, None).harmful


def test_a_loss_that_is_not_finite_is_always_harm() -> None:
    assert judge(1.0, math.nan, None).harmful
    assert judge(1.0, math.inf, placebo([1.0, 1.1, 1.0, 1.2, 1.0], [], length=1)).harmful


@given(st.floats(0.1, 5), st.floats(-1, 1))
def test_harm_begins_at_two_spreads(before: float, change: float) -> None:
    control = placebo([1.0, 1.1, 1.0, 1.1, 1.0], [], length=1)
    assert control is not None
    found = judge(before, before + change, control)
    assert found.harmful == ((before + change) - before > 2 * control.spread)
    assert found.gain == before - (before + change)


def test_an_early_graft_with_steady_harm_is_not_its_own_yardstick() -> None:
    """Losses flat, a join at index 3, then steadily worse: the boundaries on trial are no placebo."""
    losses = [1.0, 1.001, 0.999, 1.0, *(1.0 + 0.1 * n for n in range(1, 11))]
    on_trial = list(range(3, len(losses) - 1))
    control = placebo(losses, on_trial, length=10)
    assert control is not None
    assert control.spread < 0.01
    assert judge(losses[3], losses[-1], control).harmful
