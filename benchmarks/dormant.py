"""What does wrapping a model cost while nothing has grown?

Three copies of each host take turns: plain, plain again (the A/A control), and wrapped. A ratio is the median over turns of
one copy's time over the plain one's in the same turn.
"""

import copy
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from benchmarks.support.hosts import HOSTS, Host, batch_of, fresh
from benchmarks.support.report import Answer, Target
from benchmarks.support.timing import Plan, Work, interleaved, paired_ratio
from esper.kasmina import wrap

LIMIT = 1.01
"""A ratio below which a cost cannot be told from noise on a machine like this."""
LEARNING_RATE = 1e-4

Arm: TypeAlias = Callable[[nn.Module, Host, int], Work]
"""Makes the work of one arm from its model, its host and a seed."""


def answer(*, quick: bool, seed: int) -> Answer:
    """Measure forward pass and training step of every host."""
    torch.set_num_threads(1)
    rounds, turns = (6, 40) if quick else (16, 80)
    # Short samples keep the arms of a turn close together, so that what the machine does meanwhile cancels in the ratio.
    plan = Plan(rounds, turns, sample_s=4e-4, seed=seed)
    result = Answer(
        method=f"median of {plan.rounds * plan.turns} paired ratios of CPU time, one thread; copies made anew for each "
        f"{plan.turns} pairs, order drawn, no garbage collection, samples of at least {plan.sample_s * 1e3:g} ms"
    )
    for host in HOSTS:
        for job, arm in (("forward", forward), ("step", training_step)):
            _compare(result, host, job, arm, plan)
    _judge(result)
    return result


def forward(model: nn.Module, host: Host, seed: int) -> Work:
    """Return one evaluation of the model."""
    inputs, _ = batch_of(host, seed)
    model.eval()

    @torch.no_grad()
    def work() -> None:
        model(inputs)

    return work


def training_step(model: nn.Module, host: Host, seed: int) -> Work:
    """Return one training step of the model, with AdamW."""
    inputs, targets = batch_of(host, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()

    def work() -> None:
        torch.autograd.backward(host.loss(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()

    return work


def _compare(result: Answer, host: Host, job: str, arm: Arm, plan: Plan) -> None:
    def make(index: int) -> Mapping[str, Work]:
        models = _copies(host, plan.seed + index)
        return {name: arm(model, host, plan.seed) for name, model in models.items()}

    times = interleaved(make, plan)
    microseconds = {name: 1e6 * sorted(taken)[len(taken) // 2] for name, taken in times.items()}
    result.metrics[f"{job}.{host.name}.wrapped_us"] = microseconds["wrapped"]
    result.baselines[f"{job}.{host.name}.plain_us"] = microseconds["plain"]
    result.ratios[f"{job}.{host.name}.wrapped_over_plain"] = paired_ratio(times, "wrapped", "plain")
    result.ratios[f"{job}.{host.name}.control"] = paired_ratio(times, "control", "plain")


def _copies(host: Host, seed: int) -> dict[str, nn.Module]:
    """Return equal models, made in an order that changes from round to round."""
    model = fresh(host, seed)
    names = ["plain", "control", "wrapped"]
    names = names[seed % 3 :] + names[: seed % 3]
    models = {name: copy.deepcopy(model) for name in names}
    wrap(models["wrapped"], example=batch_of(host, seed)[0])
    return models


def _judge(result: Answer) -> None:
    costs = {name: ratio for name, ratio in result.ratios.items() if name.endswith(".wrapped_over_plain")}
    controls = [ratio for name, ratio in result.ratios.items() if name.endswith(".control")]
    result.targets += [Target(name, "<=", LIMIT, ratio) for name, ratio in costs.items()]
    result.targets += [
        Target("largest control", "<=", 1.01, max(controls)),
        Target("smallest control", ">=", 0.99, min(controls)),
    ]
