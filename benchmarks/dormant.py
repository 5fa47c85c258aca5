"""What does wrapping a model cost while nothing has grown?

Three copies of each host take turns: plain, plain again (the A/A control), and wrapped. A ratio is the median over turns of
one copy's time over the plain one's in the same turn.
"""

import copy
import statistics
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from benchmarks.support.hosts import HOSTS, Host, batch_of, fresh
from benchmarks.support.process import in_process
from benchmarks.support.report import Answer, Target
from benchmarks.support.timing import Plan, Work, interleaved, paired_ratio
from esper.kasmina import wrap

LIMIT = 1.01
"""A ratio below which a cost cannot be told from noise on a machine like this."""
LEARNING_RATE = 1e-4
TURNS = 80
# Short samples keep the arms of a turn close together, so that what the machine does meanwhile cancels in the ratio.
SAMPLE_S = 4e-4

Arm: TypeAlias = Callable[[nn.Module, Host, int], Work]
"""Makes the work of one arm from its model, its host and a seed."""
Times: TypeAlias = dict[str, list[float]]
"""Seconds of every turn, by arm."""


def answer(*, quick: bool, seed: int) -> Answer:
    """Measure forward pass and training step of every host."""
    processes, rounds = (2, 1) if quick else (6, 3)
    result = Answer(
        method=f"median of {processes * rounds * TURNS} paired ratios of CPU time, one thread, over {processes} processes; "
        f"copies made anew for each {TURNS} pairs, order drawn, no garbage collection, samples of at least "
        f"{SAMPLE_S * 1e3:g} ms"
    )
    parts: list[Any] = [
        in_process("benchmarks.dormant:measured", rounds=rounds, seed=seed + 1_000 * index)
        for index in range(processes)
    ]
    for job in parts[0]:
        _add(result, job, _joined([part[job] for part in parts]))
    _judge(result)
    return result


def measured(*, rounds: int, seed: int) -> dict[str, Times]:
    """Time every host in this process; the result is by job and host, such as ``forward.linear``."""
    torch.set_num_threads(1)
    plan = Plan(rounds, TURNS, SAMPLE_S, seed)
    jobs: dict[str, Arm] = {"forward": forward, "step": training_step}
    return {f"{job}.{host.name}": _timed(host, arm, plan) for host in HOSTS for job, arm in jobs.items()}


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


def _timed(host: Host, arm: Arm, plan: Plan) -> Times:
    def make(index: int) -> Mapping[str, Work]:
        models = _copies(host, plan.seed + index)
        return {name: arm(model, host, plan.seed) for name, model in models.items()}

    return interleaved(make, plan)


def _copies(host: Host, seed: int) -> dict[str, nn.Module]:
    """Return equal models, made in an order that changes from round to round."""
    model = fresh(host, seed)
    names = ["plain", "control", "wrapped"]
    names = names[seed % 3 :] + names[: seed % 3]
    models = {name: copy.deepcopy(model) for name in names}
    wrap(models["wrapped"], example=batch_of(host, seed)[0])
    return models


def _joined(parts: list[Times]) -> Times:
    return {arm: [seconds for part in parts for seconds in part[arm]] for arm in parts[0]}


def _add(result: Answer, job: str, times: Times) -> None:
    result.metrics[f"{job}.wrapped_us"] = 1e6 * statistics.median(times["wrapped"])
    result.baselines[f"{job}.plain_us"] = 1e6 * statistics.median(times["plain"])
    result.ratios[f"{job}.wrapped_over_plain"] = paired_ratio(times, "wrapped", "plain")
    result.ratios[f"{job}.control"] = paired_ratio(times, "control", "plain")


def _judge(result: Answer) -> None:
    costs = {name: ratio for name, ratio in result.ratios.items() if name.endswith(".wrapped_over_plain")}
    controls = [ratio for name, ratio in result.ratios.items() if name.endswith(".control")]
    result.targets += [Target(name, "<=", LIMIT, ratio) for name, ratio in costs.items()]
    result.targets += [
        Target("largest control", "<=", 1.01, max(controls)),
        Target("smallest control", ">=", 0.99, min(controls)),
    ]
