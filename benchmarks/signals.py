"""What does a signal cost a training that is sampled at every 50th step?

Copies of each host take turns: a plain step, a plain step of another copy (the A/A control), and a step that a signal watches,
with what it takes to arm it and to read it. The ratio of a watched step to the plain one of the same turn, less 1, is spent
once in 50 steps.
"""

import copy
import statistics
from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from benchmarks.support.hosts import HOSTS, Host, batch_of, fresh
from benchmarks.support.process import in_process
from benchmarks.support.report import Answer, Target
from benchmarks.support.timing import Plan, Work, interleaved, paired_ratio
from esper.kasmina import SIGNALS, placement_of, signal_named, wrap

LIMIT = 1.01
WINDOW = 50
"""Steps from one sample to the next."""
LEARNING_RATE = 1e-4
TURNS = 40
SAMPLE_S = 4e-4

Times = dict[str, list[float]]
"""Seconds of every turn, by arm."""


def answer(*, quick: bool, seed: int) -> Answer:
    """Measure every signal on every host."""
    processes, rounds = (1, 1) if quick else (3, 3)
    result = Answer(
        method=f"1 + (r - 1) / {WINDOW}, r being the median of {processes * rounds * TURNS} paired ratios of CPU time of "
        f"one training step with AdamW, one thread, over {processes} processes; order drawn, no garbage collection"
    )
    parts: list[dict[str, Times]] = [
        in_process("benchmarks.signals:measured", rounds=rounds, seed=seed + 1_000 * index)
        for index in range(processes)
    ]
    for host in parts[0]:
        _add(result, host, {arm: [s for part in parts for s in part[host][arm]] for arm in parts[0][host]})
    return result


def measured(*, rounds: int, seed: int) -> dict[str, Times]:
    """Time every host in this process."""
    torch.set_num_threads(1)
    plan = Plan(rounds, TURNS, SAMPLE_S, seed)
    return {host.name: interleaved(partial(_arms, host, seed), plan) for host in HOSTS}


def _arms(host: Host, seed: int, index: int) -> Mapping[str, Work]:
    model = fresh(host, seed + index)
    wrap(model, example=batch_of(host, seed)[0])
    arms = {"plain": None, "control": None, **{name: name for name in SIGNALS}}
    return {arm: _step(copy.deepcopy(model), host, seed, name) for arm, name in arms.items()}


def _step(model: nn.Module, host: Host, seed: int, name: str | None) -> Work:
    """Return one training step, watched by the signal of that name."""
    inputs, targets = batch_of(host, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()

    def step() -> None:
        torch.autograd.backward(host.loss(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()

    def watched() -> None:
        signal = signal_named(str(name), model, optimizer)
        signal.arm()
        step()
        signal.disarm()
        if signal.read().keys() != placement_of(model).slots.keys():
            raise AssertionError(f"{name} left a slot of {host.name} out")

    step()  # the moments that one signal reads are there from the second step on
    return step if name is None else watched


def _add(result: Answer, host: str, times: Times) -> None:
    result.baselines[f"{host}.plain_us"] = 1e6 * statistics.median(times["plain"])
    for arm in ("control", *SIGNALS):
        ratio = paired_ratio(times, arm, "plain")
        result.metrics[f"{host}.{arm}_step_over_plain"] = ratio
        result.ratios[f"{host}.{arm}"] = 1 + (ratio - 1) / WINDOW
    result.targets += [Target(f"{host}.{name}", "<=", LIMIT, result.ratios[f"{host}.{name}"]) for name in SIGNALS]
