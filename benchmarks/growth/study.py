"""What every study shares: its plan, its arms by seed, and its table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.growth.bench import Bench
from benchmarks.growth.figures import Difference, mean_error, paired
from benchmarks.growth.runs import Outcome
from benchmarks.growth.tuning import FIRST_TUNING_SEED, MOST_EXTENSIONS, Choice, Make, tuned
from benchmarks.support.report import Target

RATES: dict[str, tuple[float, ...]] = {
    "mnist1d": (0.005, 0.01, 0.02, 0.04),
    "digits": (0.005, 0.01, 0.02, 0.04),
    "friedman": (0.005, 0.01, 0.02, 0.04),
    "narrow": (0.005, 0.01, 0.02, 0.04),
    "characters": (0.0015, 0.003, 0.006, 0.012),
    "uneven": (0.005, 0.01, 0.02, 0.04),
    "help-pages": (0.0015, 0.003, 0.006, 0.012),
    "docstrings": (0.0015, 0.003, 0.006, 0.012),
    "code": (0.0015, 0.003, 0.006, 0.012),
}
"""Peak rates that every arm of a task is first tried at."""


@dataclass(frozen=True)
class Plan:
    """How much of a study is done; written down before its first run.

    Attributes:
        seeds: Reported seeds.
        num_many: Reported seeds of claims whose effects are small: about places, and about verdicts.
        tuning_seeds: Seeds of the tuning.
        share: Of a task's steps that a run takes.
        rates: Peak rates to begin with, by task.
        extensions: How often a grid may grow where the best rate lies at its edge.
    """

    seeds: tuple[int, ...] = tuple(range(8))
    num_many: int = 24
    tuning_seeds: tuple[int, ...] = tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + 3))
    share: float = 1.0
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: RATES)
    extensions: int = MOST_EXTENSIONS

    @property
    def many_seeds(self) -> tuple[int, ...]:
        """Reported seeds of claims whose effects are small."""
        return tuple(range(self.seeds[0], self.seeds[0] + self.num_many))

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Seeds of the tuning and reported ones."""
        return (*self.tuning_seeds, *self.seeds)

    @classmethod
    def quick(cls) -> "Plan":
        """Return a plan that shows how a study works; its figures prove nothing."""
        few = {task: rates[1:3] for task, rates in RATES.items()}
        return cls(seeds=(0, 1), num_many=2, tuning_seeds=(FIRST_TUNING_SEED,), share=0.1, rates=few, extensions=0)

    def from_seed(self, seed: int) -> "Plan":
        """Return the same plan with its reported seeds counted from another one."""
        return replace(self, seeds=tuple(seed + number for number in self.seeds))


def tune(bench: Bench, plan: Plan, name: str, arms: Mapping[str, Make]) -> dict[str, Choice]:
    """Choose a rate for each arm of a task, as the plan has it."""
    return tuned(bench, arms, grid=plan.rates[name], seeds=plan.tuning_seeds, extensions=plan.extensions)


Arms = Mapping[str, Sequence[Outcome]]
"""Outcomes by arm, one per seed in the order of the plan."""


@dataclass
class Study:
    """What a study found on one task.

    Attributes:
        name: Of the use.
        task: Of the task.
        arms: Outcomes by arm.
        tuning: How each arm's rate was chosen.
        reference: The arm that the others are held against.
        facts: Further figures, by name.
        targets: Bars.
    """

    name: str
    task: str
    arms: Arms
    tuning: Mapping[str, Choice]
    reference: str
    facts: dict[str, float] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)

    def less(self, arm: str, other: str) -> Difference:
        """Return an arm's test points less another's."""
        return paired(tests(self.arms[arm]), tests(self.arms[other]), comparisons=len(self.arms) - 1)

    def loss_less(self, arm: str, other: str) -> Difference:
        """Return an arm's test loss less another's; below zero it is better."""
        ours, theirs = (test_losses(self.arms[name]) for name in (arm, other))
        return paired(ours, theirs, comparisons=len(self.arms) - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the whole table."""
        return {
            "use": self.name,
            "task": self.task,
            "reference": self.reference,
            "arms": {arm: self._row(arm, outcomes) for arm, outcomes in self.arms.items()},
            "tuning": {arm: choice.to_json() for arm, choice in self.tuning.items()},
            "facts": self.facts,
            "targets": [target.to_json() for target in self.targets],
            "commits": sorted({outcome.commit for outcomes in self.arms.values() for outcome in outcomes}),
        }

    def _row(self, arm: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        points, error = mean_error(tests(outcomes))
        old = [round(outcome.old_test, 3) for outcome in outcomes if outcome.old_test is not None]
        loss, loss_error = mean_error(test_losses(outcomes))
        return {
            "seeds": [outcome.run.seed for outcome in outcomes],
            "test": [round(value, 3) for value in tests(outcomes)],
            **({"old_test": old} if old else {}),
            "test_mean": round(points, 3),
            "test_error": round(error, 3),
            "test_loss": round(loss, 5),
            "test_loss_error": round(loss_error, 5),
            "params": round(mean(outcome.params for outcome in outcomes)),
            "steps": round(mean(outcome.steps for outcome in outcomes)),
            "gflops": round(mean(outcome.flops for outcome in outcomes) / 1e9, 3),
            "overhead_share": round(mean(outcome.overhead / outcome.flops for outcome in outcomes), 4),
            "reference_less_this": self.less(self.reference, arm).to_json(),
            "curves": [[[f"{flops:.4g}", f"{loss:.4g}"] for flops, loss in outcome.curve] for outcome in outcomes[:1]],
        }


def tests(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the test points of outcomes."""
    return [value for outcome in outcomes if (value := outcome.test) is not None]


def test_losses(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the mean test losses of outcomes."""
    return [value for outcome in outcomes if (value := outcome.test_loss) is not None]


def mean(values: Any) -> float:
    """Return a mean."""
    held = list(values)
    return float(sum(held) / len(held))
