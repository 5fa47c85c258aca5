"""From scratch, at equal FLOPs: does a run that grows lose to one that has the final size from its first step?

Runs are twice as long as elsewhere, so that the small network has converged. Arms: esper's default controller from the small
host; what it ended with, from the start, for as many FLOPs and for 1 / 0.85 and 1 / 0.7 times as many; the small host for as many
FLOPs; random growth.
"""

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.study import Plan, Study, mean, tune
from benchmarks.growth.tasks import task_named
from benchmarks.growth.tuning import Make
from benchmarks.support.report import Target
from esper.services.tamiyo.config import Where

ESPER, SMALL, RANDOM = "esper", "static small", "random growth"
LONGER = 2.0
SHARES = (1.0, 0.85, 0.7)
"""Esper's FLOPs as shares of those of the static final network."""
MARGIN_POINTS = 1.0


def final(share: float) -> str:
    """Return the name of the arm of the static final network of which esper spends a share."""
    return "static final" if share == 1 else f"static final, esper has {share:g} of its FLOPs"


def study(bench: Bench, plan: Plan, name: str) -> Study:
    """Grow from scratch and train the final network from the start, on one task."""
    task = task_named(name)
    steps = max(1, round(LONGER * plan.share * task.steps))

    def growing(arm: str, where: Where) -> Make:
        return lambda rate, seed: Run(
            task=name, arm=arm, seed=seed, rate=rate, width=task.widths[0], steps=steps, controller=where
        )

    esper = growing(ESPER, Where.BALANCED)
    tuning = tune(bench, plan, name, {ESPER: esper})
    outcomes = bench.outcomes([esper(tuning[ESPER].rate, seed) for seed in plan.seeds])
    grown = {outcome.run.seed: outcome for outcome in (*tuning[ESPER].outcomes, *outcomes)}
    controls = _controls(grown) | {RANDOM: growing(RANDOM, Where.RANDOM)}
    tuning |= tune(bench, plan, name, controls)
    found = {
        arm: bench.outcomes([make(tuning[arm].rate, seed) for seed in plan.seeds]) for arm, make in controls.items()
    }
    result = Study("from scratch", name, {ESPER: outcomes} | found, tuning, ESPER)
    _judge(result)
    return result


def _controls(grown: dict[int, Outcome]) -> dict[str, Make]:
    """Return the static arms, by what esper spent and ended with on the same seed."""

    def static(arm: str, share: float, *, grafted: bool) -> Make:
        return lambda rate, seed: Run(
            task=grown[seed].run.task, arm=arm, seed=seed, rate=rate, width=grown[seed].run.width,
            flops=round(grown[seed].flops / share), places=grown[seed].places if grafted else (),
        )  # fmt: skip

    finals = {final(share): static(final(share), share, grafted=True) for share in SHARES}
    return {SMALL: static(SMALL, 1.0, grafted=False), **finals}


def _judge(result: Study) -> None:
    over_final, over_small = result.less(ESPER, final(1.0)), result.less(ESPER, SMALL)
    regime = result.less(final(1.0), SMALL)
    result.facts = {
        "esper_less_static_final_points": over_final.mean,
        "esper_less_static_final_error": over_final.error,
        "esper_less_static_small_points": over_small.mean,
        "esper_less_static_small_error": over_small.error,
        "final_less_small_points": regime.mean,
        "final_less_small_error": regime.error,
        "counts": float(regime.at_least(0.0)),
        "esper_less_random_points": result.less(ESPER, RANDOM).mean,
        "esper_less_random_error": result.less(ESPER, RANDOM).error,
    }
    for share in SHARES[1:]:
        nats = result.loss_less(ESPER, final(share))
        result.facts |= {f"loss_less_final_at_{share:g}": nats.mean, f"loss_less_final_at_{share:g}_error": nats.error}
    about = f"from scratch, {result.task}"
    result.targets = [
        Target(
            f"{about}: less static final, two errors below",
            ">=",
            -MARGIN_POINTS,
            over_final.mean - 2 * over_final.error,
        ),
        Target(f"{about}: less static small, two errors below", ">=", 0.0, over_small.mean - 2 * over_small.error),
    ]
    if result.task == "characters":
        nats = mean(o.test_loss or 0.0 for o in result.arms[ESPER]) - mean(
            o.test_loss or 0.0 for o in result.arms[final(0.85)]
        )
        result.targets.append(Target(f"{about}: loss less static final's at 0.85 of its FLOPs", "<=", 0.0, nats))
