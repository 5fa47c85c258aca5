"""Does a forge at full load slow a training beside it down, or make it wait?

A training that grows (`esper.attach`, its own library and controller) is pinned to one core; a forge that always has work, with
its children and its store, to another. Blocks of steps are timed in pairs, with the forge held (SIGSTOP) and let go, whichever
comes first drawn anew for each pair. What is left between them is what the cores share: memory, caches, the disk.
"""

import os
import random
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

import esper
from benchmarks.support.hosts import ResidualNet
from benchmarks.support.report import Answer, Target
from benchmarks.support.saturated import Saturated, saturated
from benchmarks.support.timing import undisturbed
from esper.services.tolaria.growth import Growth

EVERY = 25
"""Steps from one boundary to the next; blocks are multiples of it, so that each has equally many."""
PAIRS, BLOCK = 20, 8 * EVERY
QUICK_PAIRS, QUICK_BLOCK = 3, 2 * EVERY
WARM_UP = 8 * EVERY
BATCH = 32
SLOWER = 1.03
"""Most that a step may take beside the forge, alone being 1."""


@dataclass
class Training:
    """A model in training; `attach` watches it.

    Attributes:
        model: The model.
        optimizer: Its optimizer.
        growth: What watches.
    """

    model: nn.Module
    optimizer: AdamW
    growth: Growth
    inputs: Tensor
    targets: Tensor

    def steps(self, count: int) -> tuple[float, float]:
        """Train; return wall and processor seconds of a step."""
        with undisturbed():
            wall, cpu = perf_counter(), process_time()
            for _ in range(count):
                chosen = torch.randint(len(self.inputs), (BATCH,))
                loss = functional.cross_entropy(self.model(self.inputs[chosen]), self.targets[chosen])
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.growth.step(loss)
            return (perf_counter() - wall) / count, (process_time() - cpu) / count


def answer(*, quick: bool, seed: int) -> Answer:
    """Train alone and beside the forge, in turns."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("this takes two cores: one for the training, one for the forge")
    torch.set_num_threads(1)
    with saturated(cores[-1]) as forge, tempfile.TemporaryDirectory() as root:
        os.sched_setaffinity(0, {cores[0]})
        try:
            return _compared(forge, Path(root), quick=quick, seed=seed)
        finally:
            os.sched_setaffinity(0, set(cores))


def _compared(forge: Saturated, root: Path, *, quick: bool, seed: int) -> Answer:
    pairs, block = (QUICK_PAIRS, QUICK_BLOCK) if quick else (PAIRS, BLOCK)
    dice, kernels, beside_s = random.Random(seed), 0, 0.0
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    training = _training(root, seed)
    try:
        training.steps(WARM_UP)
        for _ in range(pairs):
            for beside in dice.sample((True, False), 2):
                if beside:
                    forge.go_on()
                times[beside].append(training.steps(block))
                if beside:
                    forge.hold()
                    kernels, beside_s = kernels + forge.kernels(), beside_s + times[True][-1][0] * block
        waits = training.growth.waits
    finally:
        training.growth.close()
    if not kernels:
        raise RuntimeError("the forge gave no kernel meanwhile: no figure means anything")
    return _answered(times, kernels / beside_s, waits)


def _answered(times: dict[bool, list[tuple[float, float]]], kernels_per_s: float, waits: int) -> Answer:
    answer = Answer(method="medians over pairs of blocks of steps, forge held and let go in turns; one thread each")
    for at, clock in enumerate(("wall", "cpu")):
        alone, beside = ([taken[at] for taken in times[which]] for which in (False, True))
        answer.baselines[f"step_{clock}_alone_ms"] = statistics.median(alone) * 1e3
        answer.metrics[f"step_{clock}_beside_ms"] = statistics.median(beside) * 1e3
        ratios = [with_it / without for with_it, without in zip(beside, alone, strict=True)]
        answer.ratios[f"step_{clock}_beside_over_alone"] = statistics.median(ratios)
    answer.metrics["forge_kernels_per_s"] = kernels_per_s
    answer.metrics["waits"] = waits
    answer.targets.append(Target("waits", "==", 0, waits))
    ratio = answer.ratios["step_wall_beside_over_alone"]
    answer.targets.append(Target("step_wall_beside_over_alone", "<=", SLOWER, ratio))
    return answer


def _training(root: Path, seed: int) -> Training:
    torch.manual_seed(seed)
    inputs, targets = torch.randn(256, 3, 16, 16), torch.randint(10, (256,))
    model = esper.wrap(ResidualNet(), example=inputs[:BATCH])
    optimizer = AdamW(model.parameters(), lr=1e-3)

    def validate(grown: nn.Module) -> Tensor:
        return functional.cross_entropy(grown(inputs[:64]), targets[:64], reduction="none")

    growth = esper.attach(model, optimizer, validate=validate, every=EVERY, budget="x4", root=str(root))
    return Training(model, optimizer, growth, inputs, targets)
