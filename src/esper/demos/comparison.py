"""What a demo found: each arm's numbers, and how esper stands beside each control, in words."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from esper.demos.arms import Arm
from esper.demos.messages import Trained

CLEAR = 2.0
"""A difference of more standard errors than this is called a win."""
CLOSE = 1.0


class Standing(StrEnum):
    """How esper stands beside one control, by the paired difference and its standard error."""

    SAME = "the same result on every seed"
    WINS = "esper wins"
    AHEAD = "esper is ahead, not by two standard errors"
    LEVEL = "level, within one standard error"
    BEHIND = "esper is behind, not by two standard errors"
    LOSES = "this control wins"


@dataclass(frozen=True)
class Row:
    """One arm over all seeds.

    Attributes:
        arm: Which.
        params: Parameters at the end, the mean over the seeds.
        test_mean: Mean test accuracy, from 0 to 1.
        test_sd: Its standard deviation over the seeds.
        train_flops: What one training cost, the mean over the seeds.
    """

    arm: Arm
    params: int
    test_mean: float
    test_sd: float
    train_flops: int


@dataclass(frozen=True)
class Verdict:
    """Esper beside one control, seed by seed.

    Attributes:
        control: Which.
        difference: Mean of esper's test accuracy minus the control's.
        error: Standard error of that mean; infinite with one seed.
        flops_ratio: Esper's training FLOPs as a multiple of the control's.
    """

    control: Arm
    difference: float
    error: float
    flops_ratio: float

    @property
    def standing(self) -> Standing:
        """Who wins, by how sure a margin."""
        if self.difference == self.error == 0:
            return Standing.SAME
        if abs(self.difference) <= CLOSE * self.error:
            return Standing.LEVEL
        clear = abs(self.difference) > CLEAR * self.error
        if self.difference > 0:
            return Standing.WINS if clear else Standing.AHEAD
        return Standing.LOSES if clear else Standing.BEHIND

    def __str__(self) -> str:
        if not math.isfinite(self.error):
            return f"{100 * self.difference:+.2f} points on one seed, which tells nothing"
        return f"{100 * self.difference:+.2f} ± {100 * self.error:.2f} points: {self.standing}"


@dataclass(frozen=True)
class Comparison:
    """Every arm of a demo, on the same seeds.

    Attributes:
        rows: One per arm, in the order of the arms.
        verdicts: One per control, in the same order.
    """

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, results: Iterable[Trained]) -> "Comparison":
        """Compare what was trained; every arm has a result on every seed, with its test part read.

        Raises:
            ValueError: If an arm lacks a seed that another has.
        """
        by_arm: dict[Arm, dict[int, Trained]] = {arm: {} for arm in Arm}
        for result in results:
            by_arm[result.arm][result.seed] = result
        seeds = sorted(by_arm[Arm.ESPER])
        if any(sorted(trained) != seeds for trained in by_arm.values()):
            raise ValueError("every arm needs a result on every seed")
        columns = {arm: [trained[seed] for seed in seeds] for arm, trained in by_arm.items()}
        rows = tuple(_row(arm, column) for arm, column in columns.items())
        controls = [arm for arm in Arm if arm is not Arm.ESPER]
        return cls(rows, tuple(_verdict(columns[Arm.ESPER], columns[arm]) for arm in controls))

    def row(self, arm: Arm) -> Row:
        """Return one arm."""
        return next(row for row in self.rows if row.arm is arm)

    def verdict(self, control: Arm) -> Verdict:
        """Return how esper stands beside one control."""
        return next(verdict for verdict in self.verdicts if verdict.control is control)


def _row(arm: Arm, column: Sequence[Trained]) -> Row:
    tests = [accuracy(trained) for trained in column]
    return Row(
        arm=arm,
        params=round(statistics.fmean(trained.params for trained in column)),
        test_mean=statistics.fmean(tests),
        test_sd=statistics.stdev(tests) if len(tests) > 1 else 0.0,
        train_flops=round(statistics.fmean(trained.train_flops for trained in column)),
    )


def _verdict(esper: Sequence[Trained], control: Sequence[Trained]) -> Verdict:
    differences = [accuracy(ours) - accuracy(theirs) for ours, theirs in zip(esper, control, strict=True)]
    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else math.inf
    ratio = sum(trained.train_flops for trained in esper) / sum(trained.train_flops for trained in control)
    return Verdict(control[0].arm, statistics.fmean(differences), error, ratio)


def accuracy(trained: Trained) -> float:
    """Return the test accuracy of a result.

    Raises:
        ValueError: If the test part was not read.
    """
    if trained.test is None:
        raise ValueError(f"the test part was not read in {trained.arm} on seed {trained.seed}")
    return trained.test
