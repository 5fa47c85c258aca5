"""Use 3, data change or arrive later: grow what was trained, retrain a larger network, or go on with the small one.

A small network is trained on what there is before the change. The unit is the whole training of the larger network from scratch
on everything, old and new. Arms, by additional FLOPs: the trained network with a graft at every slot and its schedule warmed up
again; the same with the host frozen; the small one with the same re-warming; the larger one from scratch. Each is also trained on
what came alone, without replay of what was there before: where the two worlds contradict each other, replay harms whoever has it.
How much is forgotten is measured in every arm.
"""

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.study import Plan, Study, mean, tune
from benchmarks.growth.tasks import Task, task_named
from benchmarks.growth.tuning import Make
from benchmarks.support.report import Target
from esper.demos.messages import Place

SMALL = "small, before"
GROW, FREEZE, GO_ON, RETRAIN = "grow", "grow, host frozen", "continue small", "retrain the larger"
SHORT, WHOLE = 0.35, 1.0
GAIN_POINTS = 3.0
MARGIN_POINTS = 0.5


def arm(what: str, units: float, *, replay: bool = True) -> str:
    """Return the name of an arm."""
    return f"{what}, {units:g} units{'' if replay else ', no replay'}"


def study(change: str, bench: Bench, plan: Plan, name: str) -> Study:
    """Train before a change and go on after it, on one task."""
    task = task_named(name)
    steps = max(1, round(plan.share * task.steps))
    places = tuple(Place(slot, 0, task.blueprint) for slot in task.slots)

    def small(rate: float, seed: int) -> Run:
        return Run(
            task=name, arm=SMALL, seed=seed, rate=rate, width=task.widths[0], steps=steps, change=change, keep=True
        )

    def retrain(rate: float, seed: int) -> Run:
        return Run(
            task=name, arm=RETRAIN, seed=seed, rate=rate, width=task.widths[0], steps=steps, places=places,
            change=change, after=True, replay=True,
        )  # fmt: skip

    full = arm(RETRAIN, WHOLE)
    tuning = tune(bench, plan, name, {SMALL: small, full: retrain})
    begun = {o.run.seed: o for o in bench.outcomes([small(tuning[SMALL].rate, s) for s in plan.all_seeds])}
    unit = int(mean(outcome.flops for outcome in tuning[full].outcomes))

    onward = _arms(task, change, begun, places, unit)
    tuning |= tune(bench, plan, name, onward)
    makers: dict[str, Make] = {SMALL: small, full: retrain, **onward}
    found = {arm: bench.outcomes([make(tuning[arm].rate, seed) for seed in plan.seeds]) for arm, make in makers.items()}
    result = Study(change, name, found, tuning, arm(GROW, SHORT))
    _judge(result, unit)
    return result


def _arms(task: Task, change: str, begun: dict[int, Outcome], places: tuple[Place, ...], unit: int) -> dict[str, Make]:
    """Return every arm after the change but the whole retraining with replay."""

    def make(what: str, units: float, replay: bool) -> Make:
        grows = what in (GROW, FREEZE)
        return lambda rate, seed: Run(
            task=task.name, arm=what, seed=seed, rate=rate, width=task.widths[0], flops=round(units * unit),
            planted=places if grows else (), places=places if what == RETRAIN else (), frozen=what == FREEZE,
            begin="" if what == RETRAIN else begun[seed].run.key, change=change, after=True, replay=replay,
        )  # fmt: skip

    replayed = [(what, units, True) for what in (GROW, FREEZE, GO_ON) for units in (SHORT, WHOLE)]
    alone = [(what, units, False) for what in (GROW, GO_ON, RETRAIN) for units in (SHORT, WHOLE)]
    wanted = [*replayed, (RETRAIN, SHORT, True), *alone, (FREEZE, SHORT, False)]
    return {arm(what, units, replay=replay): make(what, units, replay) for what, units, replay in wanted}


def _judge(result: Study, unit: int) -> None:
    short = result.less(arm(GROW, SHORT), arm(RETRAIN, SHORT))
    whole = result.less(arm(GROW, WHOLE), arm(RETRAIN, WHOLE))
    differences = {
        "grown_less_retrained_0.35": short,
        "grown_less_retrained_1": whole,
        "grown_less_continued_0.35": result.less(arm(GROW, SHORT), arm(GO_ON, SHORT)),
        "grown_less_continued_1": result.less(arm(GROW, WHOLE), arm(GO_ON, WHOLE)),
        "grown_less_frozen_0.35": result.less(arm(GROW, SHORT), arm(FREEZE, SHORT)),
        "grown_less_retrained_0.35_no_replay": result.less(
            *(arm(what, SHORT, replay=False) for what in (GROW, RETRAIN))
        ),
        "grown_less_retrained_1_no_replay": result.less(*(arm(what, WHOLE, replay=False) for what in (GROW, RETRAIN))),
        "grown_less_continued_1_no_replay": result.less(*(arm(what, WHOLE, replay=False) for what in (GROW, GO_ON))),
        "retrained_less_continued_1": (larger := result.less(arm(RETRAIN, WHOLE), arm(GO_ON, WHOLE))),
    }
    result.facts = {
        "unit_gflops": unit / 1e9,
        "sunk_units": mean(outcome.flops for outcome in result.arms[SMALL]) / unit,
        **{f"forgotten_points.{name}": _forgotten(result, name) for name in result.arms if name != SMALL},
        **{name: found.mean for name, found in differences.items()},
        **{f"{name}_error": found.error for name, found in differences.items()},
        "counts": float(larger.at_least(0.0)),
    }
    about = f"{result.name}, {result.task}"
    result.targets = [
        Target(f"{about}: grown less retrained at 0.35", ">=", GAIN_POINTS, short.mean),
        Target(
            f"{about}: grown less retrained at 1, two errors below", ">=", -MARGIN_POINTS, whole.mean - 2 * whole.error
        ),
    ]


def _forgotten(result: Study, name: str) -> float:
    """Return by how many points an arm is worse at what there was before than the small network was then."""
    was = [outcome.test for outcome in result.arms[SMALL] if outcome.test is not None]
    left = [outcome.old_test for outcome in result.arms[name] if outcome.old_test is not None]
    return mean(then - now for then, now in zip(was, left, strict=True))
