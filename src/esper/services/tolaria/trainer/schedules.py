"""Learning-rate schedules by name, or made by the user."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from esper.errors import ConfigError
from esper.services.tolaria.trainer.choices import check, chosen

ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
"""From an optimizer and the planned number of optimizer steps to a schedule."""

WARMUP_SHARE = 0.05
"""Of the run; 3–10 % are usual for transformers, and the middle hurts neither end."""


def cosine(optimizer: Optimizer, steps: int, **options: Any) -> LRScheduler:
    """Fall along half a cosine over the run."""
    return CosineAnnealingLR(optimizer, **{"T_max": steps, **options})


def onecycle(optimizer: Optimizer, steps: int, **options: Any) -> LRScheduler:
    """Rise to the optimizer's own rate and fall far below where it began."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, **{"max_lr": rates, "total_steps": steps, **options})


def warmup_cosine(
    optimizer: Optimizer, steps: int, *, warmup_steps: int | None = None, final_ratio: float = 0.0
) -> LRScheduler:
    """Rise linearly, then fall along half a cosine to a share of the peak."""
    rise = max(1, round(WARMUP_SHARE * steps)) if warmup_steps is None else warmup_steps
    check(0 <= rise < steps, f"warmup_steps={rise}", why=f"the run has {steps} steps", todo="warm up for fewer")

    def ratio(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        done = min(1.0, (step - rise) / (steps - rise))
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, ratio)


def plateau(optimizer: Optimizer, steps: int, **options: Any) -> LRScheduler:
    """Fall whenever the monitored metric stopped getting better; stepped with it after each validation."""
    return ReduceLROnPlateau(optimizer, **options)


SCHEDULES: dict[str, Callable[..., LRScheduler | None]] = {
    "cosine": cosine,
    "onecycle": onecycle,
    "warmup_cosine": warmup_cosine,
    "plateau": plateau,
    "none": lambda _optimizer, _steps: None,
}


def make_schedule(
    given: str | ScheduleFactory, optimizer: Optimizer, *, steps: int, options: Mapping[str, Any]
) -> LRScheduler | None:
    """Return a schedule of an optimizer for a run of ``steps``.

    Raises:
        ConfigError: If there is none of that name, it does not take the options, or the user's function returns none.
    """
    if isinstance(given, str):
        try:
            return chosen("schedule", given, SCHEDULES)(optimizer, steps, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"schedule {given!r} with {dict(options)}", why=str(error), code="ESP-2704") from error
    made = given(optimizer, steps)
    if not (hasattr(made, "step") and hasattr(made, "load_state_dict")):
        raise ConfigError(
            f"schedule= returned a {type(made).__name__}",
            todo="return one of torch.optim.lr_scheduler",
            code="ESP-2704",
        )
    return made


def by_step(schedule: LRScheduler | None) -> bool:
    """Tell whether a schedule is stepped with the optimizer, and not with the metric."""
    return schedule is not None and not isinstance(schedule, ReduceLROnPlateau)
