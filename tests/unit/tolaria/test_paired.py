"""A verdict by a twin: harm is seen, and pairs that only drift apart by chance are left alone as often as is said."""

import math
import random

import pytest

from esper.services.tolaria.paired import Difference, judge_pair


def pair(*means: float, error: float = 0.0) -> list[Difference]:
    return [Difference(mean, error) for mean in means]


def walk(rng: random.Random, count: int, *, effect: float = 0.0) -> list[Difference]:
    """Return the differences of a pair that drifts apart by chance."""
    at, found = 0.0, []
    for _ in range(count):
        at += rng.gauss(0.0, 0.1)
        found.append(Difference(at + effect, 0.001))
    return found


def culled(count: int, *, effect: float = 0.0, pairs: int = 4000) -> float:
    rng = random.Random(count)
    verdicts = [judge_pair(walk(rng, count, effect=effect)) for _ in range(pairs)]
    return sum(verdict is not None and verdict.harmful for verdict in verdicts) / pairs


@pytest.mark.parametrize("count", [3, 4, 6, 12, 30])
def test_of_pairs_that_drift_apart_by_chance_few_are_called_harm(count: int) -> None:
    """Two normal deviations are exceeded on one side in 2.3 % of cases; 4000 pairs tell that from 3.2 %."""
    assert 0.012 < culled(count) < 0.032


def test_the_paired_standard_error_alone_would_call_every_second_pair_harm() -> None:
    rng = random.Random(0)
    alone = [walk(rng, 6)[-1].mean < -2 * 0.001 for _ in range(1000)]
    assert sum(alone) > 400


@pytest.mark.parametrize("count", [6, 12])
def test_harm_far_above_the_drift_is_seen(count: int) -> None:
    assert culled(count, effect=-0.1 * 10 * math.sqrt(count)) > 0.95


def test_harm_is_seen_at_once_and_as_it_grows_and_its_gain_is_that_of_the_latest_boundary() -> None:
    for means in ((-5.0, -5.1, -5.0), (-0.5, -1.1, -1.6, -2.0, -2.5)):
        found = judge_pair(pair(*means))
        assert found is not None
        assert found.harmful
        assert found.gain == means[-1]
        assert found.windows == len(means)
        assert "above that of its twin" in found.why
        assert "clear harm" in found.why


def test_what_is_not_known_on_the_examples_is_no_harm() -> None:
    found = judge_pair(pair(-0.5, -0.5, -0.5, error=0.4))
    assert found is not None
    assert not found.harmful
    assert found.error == pytest.approx(0.4)


def test_before_the_third_boundary_there_is_no_verdict() -> None:
    assert judge_pair(pair()) is None
    assert judge_pair(pair(-9.0, -9.0)) is None
