"""Is a graft judged rightly?  Grafts that help, that cannot and that harm are planted, and the verdicts counted.

After a quarter of a run one graft joins a small host by hand, and the product judges it as it judges its own. Useful is the
task's own design; useless is a linear map, which adds nothing to what can be computed; inert never learns; harmful is the task's
design with its gradients reversed. Nothing is grafted in the absent arm, which the others are held against. All share rate,
weights, batches and place within a seed; the places take turns.

Two statistics are swept over thresholds: the product's own (the gain over spreads of the same gain in graft-free windows) and the
paired one (held-out loss of the absent arm's averaged weights less the graft's, on the same examples at the same boundary).
"""

from collections.abc import Sequence
from math import inf, isfinite

from benchmarks.growth.bench import Bench
from benchmarks.growth.plants import ABSENT, HARMFUL, INERT, USEFUL, USELESS, blueprint_of
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.study import Plan, Study, mean, tune
from benchmarks.growth.tasks import Task, task_named
from benchmarks.growth.tuning import Make
from esper.demos.messages import Place
from esper.services.tolaria.events import EventKind

JUDGED = (USEFUL, USELESS, INERT, HARMFUL)
PLANTS = (*JUDGED, ABSENT)
THRESHOLDS = (-4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
"""Spreads of the product's own statistic above which a graft would be kept; -2 is what it does."""
CULLED_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Of useful grafts: points of the operating curves, whose unit is then the same for both statistics."""


def study(bench: Bench, plan: Plan, name: str) -> Study:
    """Plant and judge, on one task."""
    task = task_named(name)
    steps = max(1, round(plan.share * task.steps))
    arms = {plant: _make(task, plant, steps) for plant in PLANTS}
    tuning = tune(bench, plan, name, {ABSENT: arms[ABSENT]})
    rate = tuning[ABSENT].rate
    found = {plant: bench.outcomes([make(rate, seed) for seed in plan.many_seeds]) for plant, make in arms.items()}
    result = Study("acceptance", name, found, tuning, ABSENT)
    _judge(result)
    return result


def _make(task: Task, plant: str, steps: int) -> Make:
    def make(rate: float, seed: int) -> Run:
        place = Place(task.slots[seed % len(task.slots)], 0, blueprint_of(plant, task.blueprint))
        return Run(
            task=task.name, arm=plant, seed=seed, rate=rate, width=task.widths[0], steps=steps, plant=plant,
            planted=() if plant == ABSENT else (place,),
        )  # fmt: skip

    return make


def _judge(result: Study) -> None:
    own = {plant: [_own(outcome) for outcome in result.arms[plant]] for plant in JUDGED}
    twin = {plant: _paired(result.arms[plant], result.arms[ABSENT]) for plant in JUDGED}
    kept = {plant: mean(not _undone(outcome) for outcome in result.arms[plant]) for plant in JUDGED}
    worth = {plant: result.less(plant, ABSENT) for plant in JUDGED}
    result.facts = {
        "false_cull.useful": 1 - kept[USEFUL],
        "false_keep.useless": kept[USELESS],
        "false_keep.inert": kept[INERT],
        "false_keep.harmful": kept[HARMFUL],
        **{f"points_over_absent.{plant}": found.mean for plant, found in worth.items()},
        **{f"points_over_absent_error.{plant}": found.error for plant, found in worth.items()},
        **{
            f"auc.{name}.{USEFUL}_over_{other}": area(scores[USEFUL], scores[other])
            for name, scores in (("own", own), ("paired", twin))
            for other in JUDGED[1:]
        },
        **{
            f"kept_above_{threshold:g}.{plant}": mean(score >= threshold for score in own[plant])
            for threshold in THRESHOLDS
            for plant in JUDGED
        },
        **{
            f"{name}.kept_where_{share:g}_of_useful_are_culled.{other}": beyond(scores[USEFUL], scores[other], share)
            for name, scores in (("own", own), ("paired", twin))
            for share in CULLED_SHARES
            for other in JUDGED[1:]
        },
        "counts": float(worth[USEFUL].at_least(0.0)),
    }


def beyond(useful: Sequence[float], others: Sequence[float], culled: float) -> float:
    """Return the share of others that would be kept where at most a share of the useful are culled: a point of a curve."""
    threshold = sorted(useful)[min(len(useful) - 1, int(culled * len(useful)))]
    return mean(other >= threshold for other in others)


def area(higher: Sequence[float], lower: Sequence[float]) -> float:
    """Return the chance that one of the first lies above one of the second, ties half: the area under the operating curve."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in higher for b in lower]
    return mean(wins)


def _undone(outcome: Outcome) -> bool:
    return not outcome.places


def _own(outcome: Outcome) -> float:
    """Return the product's own statistic; below all others where the governor took the graft back before its verdict."""
    for verdict in outcome.verdicts:
        if verdict.gain is not None and isfinite(verdict.gain):
            return verdict.gain / verdict.error if verdict.error else inf * (1 if verdict.gain >= 0 else -1)
    return -inf


def _paired(arms: Sequence[Outcome], absent: Sequence[Outcome]) -> list[float]:
    """Return for each graft how much lower its held-out loss was than without it at its verdict."""
    return [_gap(outcome, control) for outcome, control in zip(arms, absent, strict=True)]


def _gap(outcome: Outcome, control: Outcome) -> float:
    without = dict(control.held)
    at = next((v.step for v in outcome.verdicts if v.kind in (EventKind.KEPT, EventKind.CULLED)), None)
    held = dict(outcome.held).get(at) if at is not None else None
    return -inf if at is None or held is None or at not in without else without[at] - held
