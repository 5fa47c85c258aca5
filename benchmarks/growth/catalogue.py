"""What does each design of the catalogue bring?  One graft of each at the same slot of the same trained network, all else equal.

A small network is trained to the end of its schedule. Then one arm for each design that fits goes on from there with a graft of
it, its schedule warmed up again; the control goes on for as many FLOPs without a graft. They are half of what the network with a
graft at every slot takes for as many steps as the small one took.
"""

from benchmarks.growth.bench import Bench
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.study import Plan, Study, mean, tune
from benchmarks.growth.tasks import Task, task_named
from benchmarks.growth.tuning import Make
from benchmarks.support.report import Target
from esper.demos.flops import step_flops
from esper.demos.messages import Place
from esper.demos.training import graft_from_the_start
from esper.ir import REGISTRY
from esper.kasmina import placement_of

SMALL, UNGROWN = "small", "not grown"
SHARE = 0.5
"""Of the larger network's FLOPs that an arm goes on for."""
HARM_POINTS = 0.5
"""By how much the worst design may lie below none at all."""


def study(bench: Bench, plan: Plan, name: str) -> Study:
    """Train to a plateau, and graft each design once, on one task."""
    task = task_named(name)
    steps = max(1, round(plan.share * task.steps))

    def small(rate: float, seed: int) -> Run:
        return Run(task=name, arm=SMALL, seed=seed, rate=rate, width=task.widths[0], steps=steps, keep=True)

    tuning = tune(bench, plan, name, {SMALL: small})
    begun = {o.run.seed: o for o in bench.outcomes([small(tuning[SMALL].rate, seed) for seed in plan.all_seeds])}
    slot = task.slots[len(task.slots) // 2]
    designs = eligible(task, slot, bench)
    flops = round(SHARE * steps * _step_of_the_larger(task, bench))
    arms = {design: _going_on(task, begun, design, (Place(slot, 0, design),), flops) for design in designs}
    arms[UNGROWN] = _going_on(task, begun, UNGROWN, (), flops)
    tuning |= tune(bench, plan, name, arms)
    makers: dict[str, Make] = {SMALL: small, **arms}
    found = {arm: bench.outcomes([make(tuning[arm].rate, seed) for seed in plan.seeds]) for arm, make in makers.items()}
    result = Study("catalogue", name, found, tuning, UNGROWN)
    _judge(result, designs)
    return result


def eligible(task: Task, slot: str, bench: Bench) -> tuple[str, ...]:
    """Return the designs that fit a slot of a task's small network."""
    model = task.small(0)
    task.wrapped(model, task.load(0, bench.texts))
    return tuple(REGISTRY.eligible(placement_of(model).place(slot).site()))


def _step_of_the_larger(task: Task, bench: Bench) -> int:
    """Return the FLOPs of a step of the small network with a graft at every slot."""
    data = task.load(0, bench.texts)
    model = task.small(0)
    task.wrapped(model, data)
    graft_from_the_start(model, tuple(Place(slot, 0, task.blueprint) for slot in task.slots))
    batch = data.train.first(task.batch_size)
    return step_flops(model, batch.inputs, batch.labels, task.losses)


def _going_on(task: Task, begun: dict[int, Outcome], arm: str, planted: tuple[Place, ...], flops: int) -> Make:
    return lambda rate, seed: Run(
        task=task.name, arm=arm, seed=seed, rate=rate, width=task.widths[0], begin=begun[seed].run.key, planted=planted,
        flops=flops,
    )  # fmt: skip


def _judge(result: Study, designs: tuple[str, ...]) -> None:
    gains = {design: result.less(design, UNGROWN) for design in designs}
    nats = {design: result.loss_less(design, UNGROWN) for design in designs}
    params = {arm: mean(outcome.params for outcome in result.arms[arm]) for arm in (*designs, UNGROWN)}
    result.facts = {
        "helpful": float(sum(gain.at_least(0.0) for gain in gains.values())),
        "harmful": float(sum(gain.mean + 2 * gain.error < 0 for gain in gains.values())),
        **{f"{design}.loss_less_not_grown": nats[design].mean for design in designs},
        **{f"{design}.loss_less_not_grown_error": nats[design].error for design in designs},
        **{f"{design}.params_over_not_grown": params[design] / params[UNGROWN] for design in designs},
    }
    worst = min(designs, key=lambda design: gains[design].mean)
    bound = gains[worst].mean + 2 * gains[worst].error
    result.targets = [
        Target(f"catalogue, {result.task}: the worst design less none, two errors above", ">=", -HARM_POINTS, bound)
    ]
