"""How does growing compare with GroMo, on the MLP for MNIST-1D that GroMo's own papers grow?

Each library trains the same narrow network on the same batches for the same steps and may end with as many parameters as the
wide one; static networks of both sizes stand beside them. The learning rate of each arm is tuned with equal effort by
validation; the test part is read once.
"""

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import nn

from benchmarks.support.mnist1d_mlp import NARROW, WIDE, Job, lines_of, num_params, points
from benchmarks.support.report import Answer, Target
from benchmarks.support.with_esper import train_alone, train_with_esper
from esper.errors import ConfigError
from esper.kasmina.flop_counter import FlopCounter

RATES = (0.003, 0.01, 0.03)
"""Peak rates that every arm is first tried at; where the best is at an edge, one more is tried beyond it."""
FACTOR = 3
WIDEST = 0.3
FIRST_TUNING_SEED = 1000


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        train: Does the job.
        lines: Lines of code that a user writes for it.
    """

    train: Callable[[Job], nn.Module]
    lines: int


@dataclass(frozen=True)
class Trained:
    """What came of one training.

    Attributes:
        points: Right answers on the test part, in percent.
        params: Parameters at the end.
        cpu_s: Of this process; what compiles kernels beside it is not in it.
        wall_s: On the clock.
    """

    points: float
    params: int
    cpu_s: float
    wall_s: float


def answer(*, quick: bool, seed: int) -> Answer:
    """Train every arm."""
    torch.set_num_threads(1)
    steps, num_seeds, num_tuning = (300, 2, 1) if quick else (3000, 8, 3)
    result = Answer(
        method=f"means over {num_seeds} seeds of test points after {steps} steps; rates tuned on {num_tuning} other seeds by "
        "validation; one thread, seconds of CPU of this process and of the clock; FLOPs of the first seed's whole training, "
        "counted in a run of its own"
    )
    found: dict[str, list[Trained]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arm in arms(Path(folder)).items():
            rate = tuned(arm, steps, num_tuning)
            jobs = [Job.drawn(seed=seed + number, steps=steps, rate=rate) for number in range(num_seeds)]
            found[name] = [trained(arm, job) for job in jobs]
            _add(result, name, arm, found[name], rate, flops_of(arm, jobs[0]))
    _judge(result, found)
    return result


def arms(root: Path) -> dict[str, Arm]:
    """Return every arm by name.

    Raises:
        ConfigError: If GroMo is not installed.
    """
    try:
        from benchmarks.support import with_gromo
    except ImportError as error:
        raise ConfigError(
            "GroMo is not there", why=str(error), todo="pip install gromo==0.1.0, in an environment of its own"
        ) from error
    by_gradients = [with_gromo.train_with_gromo, with_gromo.by_gradients, with_gromo.best_scale]
    chosen = sum(map(lines_of, by_gradients))
    loop = with_gromo.train_with_gromo
    return {
        "esper": Arm(partial(train_with_esper, root=root), lines_of(train_with_esper)),
        "gromo_tiny": Arm(partial(loop, widen=partial(with_gromo.by_gradients, how=with_gromo.TINY)), chosen),
        "gromo_gradmax": Arm(partial(loop, widen=partial(with_gromo.by_gradients, how=with_gromo.GRADMAX)), chosen),
        "gromo_random": Arm(partial(loop, widen=with_gromo.at_random), lines_of(loop) + lines_of(with_gromo.at_random)),
        "static_narrow": Arm(partial(train_alone, width=NARROW), lines_of(train_alone)),
        "static_wide": Arm(partial(train_alone, width=WIDE), lines_of(train_alone)),
    }


def tuned(arm: Arm, steps: int, num_seeds: int) -> float:
    """Return the peak rate with the best mean on the validation parts."""
    means: dict[float, float] = {}
    waiting = list(RATES)
    while waiting:
        rate = waiting.pop()
        jobs = [Job.drawn(seed=FIRST_TUNING_SEED + number, steps=steps, rate=rate) for number in range(num_seeds)]
        means[rate] = statistics.mean(points(arm.train(job), job.validation) for job in jobs)
        if not waiting:
            best = max(means, key=lambda rate: means[rate])
            beyond = {min(means): min(means) / FACTOR, max(means): max(means) * FACTOR}.get(best)
            waiting = [beyond] if beyond is not None and RATES[0] / FACTOR <= beyond <= WIDEST else []
    return max(means, key=lambda rate: means[rate])


def trained(arm: Arm, job: Job) -> Trained:
    """Do a job, and read the test part."""
    cpu, wall = process_time(), perf_counter()
    model = arm.train(job)
    spent = process_time() - cpu, perf_counter() - wall
    return Trained(points(model.eval(), job.test), num_params(model), *spent)


def flops_of(arm: Arm, job: Job) -> int:
    """Return the FLOPs of all that a job does in this process, its choices included; a multiply-add counts 2."""
    with FlopCounter() as counter:
        arm.train(job)
    return int(counter.total)


def _add(result: Answer, name: str, arm: Arm, found: list[Trained], rate: float, flops: int) -> None:
    held = result.baselines if name != "esper" else result.metrics
    test = [one.points for one in found]
    held[f"{name}.points"] = statistics.mean(test)
    held[f"{name}.points_error"] = statistics.stdev(test) / math.sqrt(len(test))
    held[f"{name}.params"] = statistics.mean(one.params for one in found)
    held[f"{name}.gflops"] = flops / 1e9
    held[f"{name}.cpu_s"] = statistics.mean(one.cpu_s for one in found)
    held[f"{name}.wall_s"] = statistics.mean(one.wall_s for one in found)
    held[f"{name}.lines"] = arm.lines
    held[f"{name}.rate"] = rate


def _judge(result: Answer, found: dict[str, list[Trained]]) -> None:
    for name in found.keys() - {"esper"}:
        differences = [one.points - other.points for one, other in zip(found["esper"], found[name], strict=True)]
        result.ratios[f"esper_less_{name}.points"] = statistics.mean(differences)
        result.ratios[f"esper_less_{name}.points_error"] = statistics.stdev(differences) / math.sqrt(len(differences))
    gromo = [name for name in found if name.startswith("gromo")]
    worst = min(result.ratios[f"esper_less_{name}.points"] for name in gromo)
    shortest = min(result.baselines[f"{name}.lines"] for name in gromo)
    result.targets += [
        Target("points over the best arm of GroMo", ">=", 0.0, worst),
        Target("lines of user code over its shortest", "<=", 0.0, result.metrics["esper.lines"] - shortest),
    ]
