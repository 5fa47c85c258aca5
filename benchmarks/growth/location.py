"""Where to grow: the default rule beside places drawn at random, its inverse, front first and the score alone.

The host has twelve slots in three stages whose grafts take equally many FLOPs. Every arm places four grafts of one design, at the
same boundaries: the place is all that differs. A claim about places takes 24 seeds.
"""

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Run
from benchmarks.growth.study import Plan, Study, mean, tune
from benchmarks.growth.tasks import task_named
from benchmarks.growth.tuning import Make
from benchmarks.support.report import Target
from esper.services.tamiyo.config import Where

GRAFTS = 4
RULES = {
    "default rule": Where.BALANCED,
    "random places": Where.RANDOM,
    "inverse score": Where.INVERSE,
    "front first": Where.FRONT_FIRST,
    "highest score": Where.HIGHEST_SCORE,
}
DEFAULT, RANDOM, INVERSE, *_ = RULES
UNGROWN = "not grown"


def study(bench: Bench, plan: Plan, name: str) -> Study:
    """Grow at places that differ by rule, on one task."""
    task = task_named(name)
    steps = max(1, round(plan.share * task.steps))

    def make(arm: str, where: str) -> Make:
        return lambda rate, seed: Run(
            task=name, arm=arm, seed=seed, rate=rate, width=task.widths[0], steps=steps, controller=where,
            grafts=GRAFTS if where else 0,
        )  # fmt: skip

    arms = {arm: make(arm, where.value) for arm, where in RULES.items()} | {UNGROWN: make(UNGROWN, "")}
    tuning = tune(bench, plan, name, arms)
    found = {
        arm: bench.outcomes([make(tuning[arm].rate, seed) for seed in plan.many_seeds]) for arm, make in arms.items()
    }
    result = Study("location", name, found, tuning, DEFAULT)
    _judge(result)
    return result


def _judge(result: Study) -> None:
    helped = result.loss_less(DEFAULT, UNGROWN)
    differences = {other: result.loss_less(DEFAULT, other) for other in RULES if other != DEFAULT}
    result.facts = {
        **{f"loss_less_{other}": found.mean for other, found in differences.items()},
        **{f"loss_less_{other}_error": found.error for other, found in differences.items()},
        **{f"grafts.{arm}": mean(len(o.places) for o in result.arms[arm]) for arm in RULES},
        "loss_less_not_grown": helped.mean,
        "loss_less_not_grown_error": helped.error,
        "counts": float(helped.mean + 2 * helped.error <= 0),
    }
    result.targets = [
        Target(
            f"location, {result.task}: loss less {other}, two errors above",
            "<=",
            0.0,
            differences[other].mean + 2 * differences[other].error,
        )
        for other in (RANDOM, INVERSE)
    ]
