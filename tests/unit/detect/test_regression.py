"""A lasting rise is found, within its stated rate of false alarms and a stated delay."""

import itertools
import json
import math
import random
from collections.abc import Iterator

import pytest

from esper.detect.regression import FEWEST_BLOCKS, RegressionTest, _exceedance_bound

BEFORE, WINDOW, WINDOWS = 256, 50, 20


def noise(kind: str, draw: random.Random) -> Iterator[float]:
    """Yield noise of unit variance, or of heavy tails."""
    related = float(kind.removeprefix("related ")) if kind.startswith("related") else 0.0
    value = draw.gauss(0, 1)
    while True:
        yield math.exp(0.8 * value) if kind == "skewed" else value
        value = related * value + math.sqrt(1 - related**2) * draw.gauss(0, 1)
        if kind == "heavy":
            value = draw.gauss(0, 1) / math.sqrt(draw.gammavariate(1.5, 2 / 3))


def losses(kind: str, seed: int, count: int, *, rise: float = 0.0, slope: float = 0.0) -> list[float]:
    """Return losses around 2, which rise after the first ``BEFORE``."""
    drawn = itertools.islice(noise(kind, random.Random(seed)), count)
    return [2 + 0.1 * value + slope * at + rise * (at >= BEFORE) for at, value in enumerate(drawn)]


def alarm_after(values: list[float], *, allowed: float, window: int = WINDOW) -> int | None:
    """Return after how many losses there was an alarm; raise LookupError where there is no test."""
    test = RegressionTest.against(values[:BEFORE], allowed=allowed)
    if test is None:
        raise LookupError
    for start in range(BEFORE, len(values), window):
        test.observe(values[start : start + window])
        if test.look():
            return start + window - BEFORE
    return None


def false_alarms(kind: str, *, runs: int, allowed: float, slope: float = 0.0) -> int:
    count = 0
    for seed in range(runs):
        values = losses(kind, seed, BEFORE + WINDOW * WINDOWS, slope=slope)
        try:
            count += alarm_after(values, allowed=allowed) is not None
        except LookupError:
            continue
    return count


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.0, -2e-4])
@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed", "related 0.5", "related 0.8", "related 0.9"])
def test_false_alarms_stay_within_their_rate(kind: str, slope: float) -> None:
    """At one in twenty 200 runs have 10 by right; the rate that was found is far below."""
    assert false_alarms(kind, runs=200, allowed=0.05, slope=slope) <= 10


def test_a_hundred_quiet_runs_raise_no_alarm() -> None:
    assert false_alarms("normal", runs=60, allowed=1e-3) == 0


@pytest.mark.parametrize(("kind", "delay"), [("normal", 25), ("heavy", 25), ("related 0.5", 200)])
def test_a_lasting_rise_of_three_deviations_is_found(kind: str, delay: int) -> None:
    found = []
    for seed in range(20):
        try:
            found.append(alarm_after(losses(kind, seed, BEFORE + 400, rise=0.3), allowed=1e-3, window=25))
        except LookupError:
            continue
    assert len(found) >= 15
    assert all(after is not None and after <= delay for after in found)


def test_a_rise_that_sets_in_late_is_found() -> None:
    values = losses("normal", 1, BEFORE + 1000)
    values[BEFORE + 700 :] = [value + 0.5 for value in values[BEFORE + 700 :]]
    assert (after := alarm_after(values, allowed=1e-3)) is not None
    assert 700 < after <= 800


def test_single_outliers_are_no_regression() -> None:
    values = losses("normal", 2, BEFORE + 1000)
    values[BEFORE::40] = [math.nan] * len(values[BEFORE::40])
    assert alarm_after(values, allowed=1e-3) is None


def test_losses_that_are_not_finite_count_as_worse() -> None:
    assert alarm_after(losses("normal", 3, BEFORE) + [math.nan] * 50, allowed=1e-3) == 50


def test_rises_within_the_margin_do_not_count() -> None:
    values = [1.0 + 1e-6 * math.sin(37.0 * at**1.5) for at in range(BEFORE)]
    for margin, expected in ((0.0, True), (0.1, False)):
        test = RegressionTest.against(values, allowed=1e-3, margin_ratio=margin)
        assert test is not None
        test.observe([1.05] * 100)
        assert test.look() is expected


def test_too_few_losses_give_no_test() -> None:
    assert RegressionTest.against(losses("normal", 0, FEWEST_BLOCKS - 1), allowed=1e-3) is None
    assert RegressionTest.against([], allowed=1e-3) is None
    assert RegressionTest.against(losses("related 0.95", 0, 64), allowed=1e-3) is None


@pytest.mark.parametrize(("count", "rank", "risk"), [(32, 29, 0.05), (100, 90, 0.01)])
def test_the_bound_holds_as_often_as_it_says(count: int, rank: int, risk: float) -> None:
    bound = _exceedance_bound(count, rank, risk)
    draw = random.Random(0)
    broken = sum(1 - sorted(draw.random() for _ in range(count))[rank - 1] > bound for _ in range(4000))
    assert abs(broken / 4000 - risk) < 4 * math.sqrt(risk / 4000)


def test_its_state_is_plain_and_goes_on_where_it_was() -> None:
    values = losses("related 0.5", 4, BEFORE + 101, rise=0.02)
    test = RegressionTest.against(values[:BEFORE], allowed=0.01)
    assert test is not None
    test.observe(values[BEFORE : BEFORE + 51])
    again = RegressionTest.from_dict(json.loads(json.dumps(test.to_dict())))
    for part in (test, again):
        part.look()
        part.observe(values[BEFORE + 51 :])
    assert again == test
