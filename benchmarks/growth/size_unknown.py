"""Use 1, the size is not known: one growing run beside a sweep of static sizes, each tuned, each for as many FLOPs.

Arms: esper's default controller, from the small host or, where grafts cannot widen the path through it, from a wide path with
little on it; the same, shrunk after its last step; static hosts of five widths; what esper began with, and what it ended with,
from the start; random growth. Every arm but esper spends what esper spent on the same seed, its evaluations and statistics too.
"""

from math import inf

from msgspec import structs

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.study import Plan, Study, mean, tests, tune
from benchmarks.growth.tasks import Task, task_named
from benchmarks.growth.tuning import Make
from benchmarks.support.report import Target

ESPER, SHRUNK, START, FINAL, RANDOM = "esper", "esper, shrunk", "static start", "static final", "random growth"
MARGIN_POINTS = 0.5
SWEEP_SHARE = 0.4


def study(bench: Bench, plan: Plan, name: str) -> Study:
    """Grow one run and sweep the sizes, on one task."""
    task = task_named(name)
    steps = max(1, round(plan.share * task.steps))

    def esper(rate: float, seed: int) -> Run:
        return Run(
            task=name, arm=ESPER, seed=seed, rate=rate, width=task.begins_with, steps=steps, controller="balanced"
        )

    tuning = tune(bench, plan, name, {ESPER: esper})
    grown = {outcome.run.seed: outcome for outcome in tuning[ESPER].outcomes}
    controls = _controls(task, grown)
    tuning |= tune(bench, plan, name, controls)

    outcomes = bench.outcomes([esper(tuning[ESPER].rate, seed) for seed in plan.seeds])
    grown |= {outcome.run.seed: outcome for outcome in outcomes}
    shrunk = bench.outcomes([structs.replace(outcome.run, arm=SHRUNK, shrink=True) for outcome in outcomes])
    runs = [make(tuning[arm].rate, seed) for arm, make in controls.items() for seed in plan.seeds]
    found = bench.outcomes(runs)
    arms = {ESPER: outcomes, SHRUNK: shrunk} | {
        arm: found[index * len(plan.seeds) : (index + 1) * len(plan.seeds)] for index, arm in enumerate(controls)
    }
    result = Study("size unknown", name, arms, tuning, ESPER)
    _judge(result, [static(width) for width in task.widths])
    return result


def static(width: int) -> str:
    """Return the name of a static arm."""
    return f"static {width}"


def _controls(task: Task, grown: dict[int, Outcome]) -> dict[str, Make]:
    """Return the arms that spend what esper spent; ``grown`` is read when a run is made."""

    def of_width(arm: str, width: int) -> Make:
        return lambda rate, seed: Run(
            task=task.name, arm=arm, seed=seed, rate=rate, width=width, flops=grown[seed].flops
        )

    def final(rate: float, seed: int) -> Run:
        there = grown[seed]
        return Run(
            task=task.name,
            arm=FINAL,
            seed=seed,
            rate=rate,
            width=task.begins_with,
            flops=there.flops,
            places=there.places,
        )

    def at_random(rate: float, seed: int) -> Run:
        steps = grown[seed].steps
        return Run(
            task=task.name, arm=RANDOM, seed=seed, rate=rate, width=task.begins_with, steps=steps, controller="random"
        )

    statics: dict[str, Make] = {static(width): of_width(static(width), width) for width in task.widths}
    if task.begins is not None:
        statics[START] = of_width(START, task.begins_with)
    return {**statics, FINAL: final, RANDOM: at_random}


def _judge(result: Study, statics: list[str]) -> None:
    """Hold esper against the best static size in hindsight, and against the cost of the sweep."""
    best = max(statics, key=lambda arm: mean(tests(result.arms[arm])))
    regret = result.less(best, ESPER)
    spent = mean(outcome.flops for outcome in result.arms[ESPER])
    sweep = sum(mean(outcome.flops for outcome in result.arms[arm]) for arm in statics)
    shrunk = result.less(SHRUNK, ESPER)
    params = {arm: mean(outcome.params for outcome in outcomes) for arm, outcomes in result.arms.items()}
    no_larger = [mean(tests(result.arms[arm])) for arm in statics if params[arm] <= params[SHRUNK]]
    start = result.less(ESPER, START if START in result.arms else statics[0])
    width = result.less(max(statics, key=lambda arm: int(arm.split()[1])), statics[0])
    result.facts = {
        "best_static_width": float(best.split()[1]),
        "regret_points": regret.mean,
        "regret_error": regret.error,
        "flops_over_sweep": spent / sweep,
        "shrunk_less_esper_points": shrunk.mean,
        "shrunk_less_esper_error": shrunk.error,
        "esper_less_start_points": start.mean,
        "esper_less_start_error": start.error,
        "params_left_share": params[SHRUNK] / params[ESPER],
        "shrunk_on_front": float(mean(tests(result.arms[SHRUNK])) > max(no_larger, default=-inf)),
        "widest_less_small_points": width.mean,
        "widest_less_small_error": width.error,
        "counts": float(width.at_least(0.0)),
    }
    result.targets = [
        Target(f"{result.task}: regret to the best static size, points", "<=", MARGIN_POINTS, regret.mean),
        Target(f"{result.task}: FLOPs over those of the sweep", "<=", SWEEP_SHARE, spent / sweep),
        Target(
            f"{result.task}: esper's own share of FLOPs",
            "<=",
            0.05,
            mean(o.overhead / o.flops for o in result.arms[ESPER]),
        ),
    ]
