"""Lasting shifts raise an alarm, outliers and noise do not, and one disturbance is one alarm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.detect.change import AlarmHold, Cusum


def _run_length(cusum: Cusum, scores: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> int:
    return next((n for n, z in enumerate(scores, 1) if cusum.observe(float(z))), len(scores))


def _siegmund(shift: float, allowance: float, threshold: float) -> float:
    """Mean run length of a one-sided sum, by Siegmund's approximation."""
    drift, height = shift - allowance, threshold + 1.166
    return (math.exp(-2 * drift * height) + 2 * drift * height - 1) / (2 * drift * drift)


def test_a_sum_grows_by_what_exceeds_the_allowance() -> None:
    cusum = Cusum(allowance=1.0, threshold=5.0, clip=4.0)
    assert [cusum.observe(z) for z in (2.0, 2.5, 0.0, 4.0)] == [False] * 4
    assert (cusum.up, cusum.down) == (1.0 + 1.5 - 1.0 + 3.0, 0.0)
    assert cusum.observe(2.0)
    assert (cusum.up, cusum.down) == (0.0, 0.0)


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_the_delay_to_an_alarm_is_what_theory_says(shift: float) -> None:
    random = np.random.default_rng(1)
    lengths = [
        _run_length(Cusum(allowance=0.5, threshold=5.0, clip=5.4), random.normal(shift, 1, 400)) for _ in range(600)
    ]
    assert np.mean(lengths) == pytest.approx(_siegmund(shift, 0.5, 5.0), rel=0.08)


def test_false_alarms_are_as_rare_as_theory_says() -> None:
    random = np.random.default_rng(2)
    lengths = [
        _run_length(Cusum(allowance=0.5, threshold=4.0, clip=4.4), random.standard_normal(4000)) for _ in range(150)
    ]
    assert np.mean(lengths) == pytest.approx(_siegmund(0.0, 0.5, 4.0) / 2, rel=0.25)


@given(st.floats(allow_nan=False), st.integers(1, 5))
def test_one_value_alone_never_raises_an_alarm(outlier: float, quiet: int) -> None:
    cusum = Cusum()
    assert not any(cusum.observe(z) for z in [*[0.5] * quiet, outlier, *[0.0] * quiet])


def test_a_fall_raises_an_alarm_as_a_rise_does() -> None:
    assert [_run_length(Cusum(), np.full(50, z)) for z in (3.0, -3.0)] == [3, 3]


@pytest.mark.parametrize("settings", [{"allowance": 0.0}, {"clip": 7.0}])
def test_settings_with_which_it_could_not_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"positive|one score alone"):
        Cusum(**settings)


def test_an_alarm_stays_up_and_a_second_trigger_prolongs_it() -> None:
    hold = AlarmHold(3)
    triggers = [True, False, True, False, False, False, True]
    assert [hold.observe(trigger) for trigger in triggers] == [True, True, True, True, True, False, True]
    assert hold.onsets == 2


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 8))
def test_an_alarm_is_up_exactly_when_a_trigger_is_near(triggers: list[bool], length: int) -> None:
    hold = AlarmHold(length)
    seen = [hold.observe(trigger) for trigger in triggers]
    assert seen == [any(triggers[max(0, n - length + 1) : n + 1]) for n in range(len(triggers))]
    assert hold.onsets == sum(up and not before for before, up in zip([False, *seen], seen, strict=False))


def test_a_hold_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AlarmHold(0)
