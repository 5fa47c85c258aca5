"""Every optimizer and every schedule that growth must work with: one entry each, and all tests run over them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from esper.services.tolaria.schedules import Schedule, Schedules


class Lookahead(Optimizer):
    """One of a user's own: tensors and plain values for each parameter, and keys that belong to none."""

    def __init__(self, params: Iterable[Any], lr: float, pull: float = 0.5) -> None:
        super().__init__(params, {"lr": lr, "pull": pull})
        self.state["rounds"] = 0  # type: ignore[index]
        self.state["trace"] = {"sizes": [], "mean": torch.zeros(())}  # type: ignore[index]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.state["rounds"] += 1  # type: ignore[index]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(age=0, slow=parameter.detach().double(), kind="fresh", seen=[0.0])
                state["age"] += 1
                state["kind"] = "old" if state["age"] > 1 else "fresh"
                state["seen"] = [*state["seen"][-2:], float(parameter.grad.abs().max())]
                parameter.sub_(parameter.grad, alpha=group["lr"] * (1 + state["seen"][0]))
                state["slow"].lerp_(parameter.double(), 0.1)
                if state["age"] % 2 == 0:
                    parameter.lerp_(state["slow"].to(parameter.dtype), group["pull"])


class Watched(torch.optim.AdamW):
    """One of a user's own with hooks that count its steps."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, **options)
        self.calls: list[str] = []
        self.register_step_pre_hook(lambda *_: self.calls.append("before"))
        self.register_step_post_hook(lambda *_: self.calls.append("after"))


def _rate(value: float) -> Tensor:
    return torch.tensor(value)


MakeOptimizer = Callable[[Iterable[Any]], Optimizer]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam-tensor-rate": lambda p: torch.optim.Adam(p, lr=_rate(0.01), foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw-tensor-rate": lambda p: torch.optim.AdamW(p, lr=_rate(0.01), fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop-centered": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1, lr_decay=0.01),
    "adagrad-fused": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.02),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, t0=3),
    "own": lambda p: Lookahead(p, lr=0.02),
    "watched": lambda p: Watched(p, lr=0.01),
}


class Staircase(LRScheduler):
    """One of a user's own, with a list per group under a name of its own."""

    per_group: ClassVar = ("floors",)

    def __init__(self, optimizer: Optimizer) -> None:
        self.floors = [group["lr"] / 50 for group in optimizer.param_groups]
        self.visited: tuple[int, ...] = ()
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        self.visited = (*self.visited, self.last_epoch)
        return [
            max(base * 0.7 ** (self.last_epoch // 3), floor)
            for base, floor in zip(self.base_lrs, self.floors, strict=True)
        ]


class Warm:
    """A callable object with a state, as some give to LambdaLR."""

    def __init__(self, steps: int) -> None:
        self.steps, self.calls = steps, 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return min(1.0, (step + 1) / self.steps)


def _warm_then_fall(step: int, *, warmup: int, total: int) -> float:
    return step / warmup if step < warmup else max(0.0, (total - step) / (total - warmup))


def _in_sequence(optimizer: Optimizer) -> LRScheduler:
    parts = [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, T_max=8), StepLR(optimizer, 3)]
    return SequentialLR(optimizer, parts, milestones=[5, 12])


def _decay_then_average(optimizer: Optimizer) -> Schedule:
    return Schedules([MultiStepLR(optimizer, [3, 8]), SWALR(optimizer, swa_lr=0.002, anneal_epochs=6)])


TOTAL = 20
"""Steps of a run that every schedule below can take."""

MakeSchedule = Callable[[Optimizer], Schedule]

SCHEDULES: dict[str, MakeSchedule] = {
    "lambda": lambda o: LambdaLR(o, [lambda n: 0.9**n, lambda n: 0.8**n]),
    "lambda-object": lambda o: LambdaLR(o, Warm(7)),
    "lambda-partial": lambda o: LambdaLR(o, partial(_warm_then_fall, warmup=5, total=TOTAL)),
    "multiplicative": lambda o: MultiplicativeLR(o, [lambda n: 0.97, lambda n: 0.93]),
    "step": lambda o: StepLR(o, step_size=4, gamma=0.5),
    "multi-step": lambda o: MultiStepLR(o, [3, 9, 9], gamma=0.3),
    "exponential": lambda o: ExponentialLR(o, 0.93),
    "polynomial": lambda o: PolynomialLR(o, total_iters=15, power=2.0),
    "linear": lambda o: LinearLR(o, 0.2, total_iters=11),
    "constant": lambda o: ConstantLR(o, 0.3, total_iters=6),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=TOTAL, eta_min=1e-4),
    "cosine-past-its-end": lambda o: CosineAnnealingLR(o, T_max=7),
    "warm-restarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2),
    "one-cycle": lambda o: OneCycleLR(o, max_lr=[0.1, 0.03], total_steps=TOTAL + 1),
    "one-cycle-three-phase": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=TOTAL + 1, three_phase=True),
    "cyclic": lambda o: CyclicLR(o, [0.001, 0.002], [0.1, 0.05], step_size_up=5, mode="triangular2"),
    "cyclic-own-scale": lambda o: CyclicLR(o, 0.001, 0.1, step_size_up=5, scale_fn=lambda x: 0.9**x),
    "plateau": lambda o: ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=[1e-3, 1e-4]),
    "sequential": _in_sequence,
    "chained": lambda o: ChainedScheduler([ConstantLR(o, 0.1, total_iters=5), ExponentialLR(o, 0.9)]),
    "swa": lambda o: SWALR(o, swa_lr=[0.01, 0.02], anneal_epochs=9),
    "own": Staircase,
    "several": _decay_then_average,
}


def advance(schedule: Schedule, metric: float = 1.0) -> None:
    """Step a schedule as its kind is stepped; of several, the first 8 times the first."""
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(metric)
    elif isinstance(schedule, Schedules):
        first, second = schedule.each
        (first if first.last_epoch < 8 else second).step()  # type: ignore[attr-defined]
    else:
        schedule.step()  # type: ignore[attr-defined]


def groups_of(host: nn.Module) -> list[dict[str, Any]]:
    """Return two groups of a host, with different rates."""
    parameters = list(host.parameters())
    half = len(parameters) // 2
    return [{"params": parameters[:half], "lr": 0.004}, {"params": parameters[half:]}]
