"""Use 2, a network at its plateau: grow it, retrain a larger one, or go on with the small one.

A small network is trained to the end of its schedule. The unit is the whole training of the larger network from scratch, for as
many steps. Arms, by additional FLOPs: the trained network with a graft at every slot and its schedule warmed up again; the larger
network from scratch, whole and for less; the small one with the same re-warming. What was already trained is sunk, and is stated.
"""

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.study import Plan, Study, mean, tune
from benchmarks.growth.tasks import Task, task_named
from benchmarks.growth.tuning import Make
from benchmarks.support.report import Target
from esper.demos.messages import Place

SMALL, RETRAIN = "small", "retrain the larger"
UNITS = (0.35, 0.5, 0.7, 1.0)
MARGIN_POINTS = 0.5
GAIN_POINTS = 0.3


def grow(units: float) -> str:
    """Return the name of a growing arm."""
    return f"grow, {units:g} units"


def go_on(units: float) -> str:
    """Return the name of an arm that continues the small network."""
    return f"continue small, {units:g} units"


def retrain_for(units: float) -> str:
    """Return the name of an arm that trains the larger network from scratch for less than a whole training."""
    return f"{RETRAIN}, {units:g} units"


def study(bench: Bench, plan: Plan, name: str) -> Study:
    """Train to a plateau and go on in three ways, on one task."""
    task = task_named(name)
    steps = max(1, round(plan.share * task.steps))
    places = tuple(Place(slot, 0, task.blueprint) for slot in task.slots)

    def small(rate: float, seed: int) -> Run:
        return Run(task=name, arm=SMALL, seed=seed, rate=rate, width=task.widths[0], steps=steps, keep=True)

    def retrain(rate: float, seed: int) -> Run:
        return Run(task=name, arm=RETRAIN, seed=seed, rate=rate, width=task.widths[0], steps=steps, places=places)

    tuning = tune(bench, plan, name, {SMALL: small, RETRAIN: retrain})
    plateaued = {o.run.seed: o for o in bench.outcomes([small(tuning[SMALL].rate, s) for s in plan.all_seeds])}
    unit = int(mean(outcome.flops for outcome in tuning[RETRAIN].outcomes))

    growing = {grow(units): _grow(task, plateaued, places, round(units * unit)) for units in UNITS}
    continuing = {go_on(units): _go_on(task, plateaued, round(units * unit)) for units in UNITS}
    retraining = {retrain_for(units): _retrain(task, places, round(units * unit)) for units in UNITS if units < 1}
    arms = growing | continuing | retraining
    tuning |= tune(bench, plan, name, arms)

    makers: dict[str, Make] = {SMALL: small, RETRAIN: retrain, **arms}
    found = {arm: bench.outcomes([make(tuning[arm].rate, seed) for seed in plan.seeds]) for arm, make in makers.items()}
    result = Study("plateaued network", name, found, tuning, grow(0.7))
    _judge(result, unit)
    return result


def _grow(task: Task, begun: dict[int, Outcome], places: tuple[Place, ...], flops: int) -> Make:
    return lambda rate, seed: Run(
        task=task.name, arm="grow", seed=seed, rate=rate, width=task.widths[0], flops=flops,
        planted=places, begin=begun[seed].run.key,
    )  # fmt: skip


def _go_on(task: Task, begun: dict[int, Outcome], flops: int) -> Make:
    return lambda rate, seed: Run(
        task=task.name, arm="continue small", seed=seed, rate=rate, width=task.widths[0], flops=flops,
        begin=begun[seed].run.key,
    )  # fmt: skip


def _retrain(task: Task, places: tuple[Place, ...], flops: int) -> Make:
    return lambda rate, seed: Run(
        task=task.name, arm=RETRAIN, seed=seed, rate=rate, width=task.widths[0], flops=flops, places=places
    )


def _judge(result: Study, unit: int) -> None:
    over_retrained = result.less(grow(0.7), RETRAIN)
    over_continued = result.less(grow(0.7), go_on(1.0))
    larger = result.less(RETRAIN, SMALL)
    equal = {units: result.less(grow(units), retrain_for(units)) for units in UNITS if units < 1}
    result.facts = {
        "unit_gflops": unit / 1e9,
        "grown_0.7_units_spent": mean(outcome.flops for outcome in result.arms[grow(0.7)]) / unit,
        "sunk_units": mean(outcome.flops for outcome in result.arms[SMALL]) / unit,
        "grown_0.7_less_retrained": over_retrained.mean,
        "grown_0.7_less_retrained_error": over_retrained.error,
        "grown_0.7_less_continued_1.0": over_continued.mean,
        "grown_0.7_less_continued_1.0_error": over_continued.error,
        **{f"grown_less_retrained_{units:g}_each": found.mean for units, found in equal.items()},
        **{f"grown_less_retrained_{units:g}_each_error": found.error for units, found in equal.items()},
        "retrained_less_small": larger.mean,
        "retrained_less_small_error": larger.error,
        "counts": float(larger.at_least(0.0)),
    }
    lower = over_retrained.mean - 2 * over_retrained.error
    result.targets = [
        Target(f"{result.task}: grown at 0.7 less retrained, two errors below", ">=", -MARGIN_POINTS, lower),
        Target(f"{result.task}: grown at 0.7 less small continued at 1.0", ">=", GAIN_POINTS, over_continued.mean),
    ]
