"""Paired differences agree with scipy's paired test, and rates are chosen away from the edges of the grid."""

from collections.abc import Sequence
from math import inf, log2

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks.growth.figures import paired
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.tuning import tuned


def test_a_paired_difference_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(1.0, 2.0, 12), generator.normal(0.5, 2.0, 12)
    found, reference = paired(ours, theirs), ttest_rel(ours, theirs)
    assert found.mean / found.error == pytest.approx(reference.statistic)
    interval = reference.confidence_interval(0.95)
    assert (found.mean - found.reach, found.mean + found.reach) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )
    assert paired(ours, theirs, comparisons=7).reach > found.reach


def test_one_seed_has_no_error_that_could_be_stated() -> None:
    found = paired([1.0], [0.5])
    assert (found.mean, found.error) == (0.5, inf)
    assert not found.clear
    assert not found.at_least(-100)


class Parabola:
    """A bench on which the validation loss is smallest at one rate."""

    def __init__(self, best: float) -> None:
        self.best = best
        self.asked: list[Run] = []

    def outcomes(self, runs: Sequence[Run]) -> list[Outcome]:
        self.asked += runs
        return [self._outcome(run) for run in runs]

    def _outcome(self, run: Run) -> Outcome:
        loss = log2(run.rate / self.best) ** 2
        return Outcome(
            run=run, commit="", steps=1, params=1, flops=1, overhead=0, validation=0.0, validation_loss=loss, test=None,
            test_loss=None, places=(), curve=(), events=(), seconds=0.0,
        )  # fmt: skip


@pytest.mark.parametrize(("best", "at_edge"), [(2.0, False), (16.0, False), (0.25, False), (1024.0, True)])
def test_the_grid_grows_until_the_best_rate_lies_inside_and_says_where_it_never_does(
    best: float, at_edge: bool
) -> None:
    bench = Parabola(best)
    arms = {"arm": lambda rate, seed: Run(task="friedman", arm="arm", seed=seed, rate=rate, width=4, steps=1)}
    choice = tuned(bench, arms, grid=(1.0, 2.0, 4.0), seeds=(1000, 1001))["arm"]
    assert choice.at_edge is at_edge
    assert choice.rate == best or at_edge
    assert [outcome.run.seed for outcome in choice.outcomes] == [1000, 1001]
    assert not any(run.read_test for run in bench.asked)
