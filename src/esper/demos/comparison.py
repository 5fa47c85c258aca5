"""What a demo found: each arm's numbers, and how esper stands beside each control, in words."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from esper.demos.arms import Arm
from esper.demos.measures import Measure
from esper.demos.messages import Score, Trained

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
class Spread:
    """One figure over all seeds.

    Attributes:
        mean: Over the seeds.
        sd: Standard deviation over them; 0 with one.
    """

    mean: float
    sd: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Take one figure per seed."""
        return cls(statistics.fmean(figures), statistics.stdev(figures) if len(figures) > 1 else 0.0)


@dataclass(frozen=True)
class Row:
    """One arm over all seeds.

    Attributes:
        arm: Which.
        params: Parameters at the end, the mean over the seeds.
        tests: Its figures on the test part, one for each measure.
        train_flops: What one training cost, the mean over the seeds.
    """

    arm: Arm
    params: int
    tests: tuple[Spread, ...]
    train_flops: int


@dataclass(frozen=True)
class Verdict:
    """Esper beside one control, seed by seed.

    Attributes:
        control: Which.
        difference: Mean of esper's figure on the test part minus the control's.
        error: Standard error of that mean; infinite with one seed.
        flops_ratio: Esper's training FLOPs as a multiple of the control's.
        measure: What is compared.
    """

    control: Arm
    difference: float
    error: float
    flops_ratio: float
    measure: Measure

    @property
    def standing(self) -> Standing:
        """Who wins, by how sure a margin."""
        if self.difference == self.error == 0:
            return Standing.SAME
        if abs(self.difference) <= CLOSE * self.error:
            return Standing.LEVEL
        clear = abs(self.difference) > CLEAR * self.error
        if self.measure.sign * self.difference > 0:
            return Standing.WINS if clear else Standing.AHEAD
        return Standing.LOSES if clear else Standing.BEHIND

    def __str__(self) -> str:
        found = f"{self.measure.paired(self.difference, self.error)} {self.measure.difference}"
        return f"{found}: {self.standing}" if math.isfinite(self.error) else f"{found} on one seed, which tells nothing"


@dataclass(frozen=True)
class Comparison:
    """Every arm of a demo, on the same seeds.

    Attributes:
        rows: One per arm, in the order of the arms.
        verdicts: One per control, in the same order, by the first measure.
        measures: What is told of every arm.
    """

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    measures: tuple[Measure, ...]

    @classmethod
    def of(cls, results: Iterable[Trained], measures: tuple[Measure, ...]) -> "Comparison":
        """Compare what was trained.

        Args:
            results: Every arm on every seed, with its test part read.
            measures: What is told of every arm; by the first they are compared.

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
        rows = tuple(_row(arm, column, measures) for arm, column in columns.items())
        controls = [arm for arm in Arm if arm is not Arm.ESPER]
        verdicts = tuple(_verdict(columns[Arm.ESPER], columns[arm], measures[0]) for arm in controls)
        return cls(rows, verdicts, measures)

    def row(self, arm: Arm) -> Row:
        """Return one arm."""
        return next(row for row in self.rows if row.arm is arm)

    def verdict(self, control: Arm) -> Verdict:
        """Return how esper stands beside one control."""
        return next(verdict for verdict in self.verdicts if verdict.control is control)


def _row(arm: Arm, column: Sequence[Trained], measures: tuple[Measure, ...]) -> Row:
    return Row(
        arm=arm,
        params=round(statistics.fmean(trained.params for trained in column)),
        tests=tuple(Spread.of([measure.of(tested(trained)) for trained in column]) for measure in measures),
        train_flops=round(statistics.fmean(trained.train_flops for trained in column)),
    )


def _verdict(esper: Sequence[Trained], control: Sequence[Trained], measure: Measure) -> Verdict:
    pairs = zip(esper, control, strict=True)
    differences = [measure.of(tested(ours)) - measure.of(tested(theirs)) for ours, theirs in pairs]
    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else math.inf
    ratio = sum(trained.train_flops for trained in esper) / sum(trained.train_flops for trained in control)
    return Verdict(control[0].arm, statistics.fmean(differences), error, ratio, measure)


def tested(trained: Trained) -> Score:
    """Return how a result does on the test part.

    Raises:
        ValueError: If that was not read.
    """
    if trained.test is None:
        raise ValueError(f"the test part was not read in {trained.arm} on seed {trained.seed}")
    return trained.test
