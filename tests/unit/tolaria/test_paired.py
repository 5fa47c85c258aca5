"""A verdict by a twin: harm is seen, and pairs that only drift apart by chance are left alone as often as is said."""

import math
import random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from esper.services.tolaria.averaging import AveragedWeights
from esper.services.tolaria.paired import Difference, judge_pair
from tests.unit.tolaria.trainer.support import data, host


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


BOUNDARIES, EVERY, EXAMPLES = 6, 10, 64


def arm(pair: int, dropout_seed: int) -> list[Tensor]:
    """Return the held-out losses of the averaged weights at each boundary; the two arms of a pair differ by dropout alone."""
    inputs, labels = data(256).tensors
    aside, wanted = data(EXAMPLES, seed=1).tensors
    model, order = host(pair), torch.Generator().manual_seed(pair)
    optimizer, average, found = torch.optim.AdamW(model.parameters(), lr=1e-3), AveragedWeights(model), []
    torch.manual_seed(pair)
    for step in range(1, (6 + BOUNDARIES) * EVERY + 1):
        batch = torch.randint(256, (16,), generator=order)
        cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        if step == 6 * EVERY:
            torch.manual_seed(dropout_seed)
        if step % EVERY == 0:
            with average.applied(), torch.no_grad():
                found.append(cross_entropy(model.eval()(aside), wanted, reduction="none").double())
            model.train()
            average.reset()
    return found[6:]


@pytest.mark.slow
def test_of_real_trainings_that_differ_by_dropout_alone_few_are_called_harm() -> None:
    harm = alone = 0
    for pair in range(60):
        differences = [left - right for left, right in zip(arm(pair, 1), arm(pair, 2), strict=True)]
        found = [Difference(float(d.mean()), float(d.std()) / EXAMPLES**0.5) for d in differences]
        for signed in (found, [Difference(-d.mean, d.error) for d in found]):
            verdict = judge_pair(signed)
            assert verdict is not None
            harm += verdict.harmful
            alone += signed[-1].mean < -2 * signed[-1].error
    assert harm <= 4, "of 120"
    assert alone >= 12, "the paired standard error alone is no such bound"
