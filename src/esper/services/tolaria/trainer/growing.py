"""The one place where the trainer meets the parts that ``esper.attach`` brings along."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper import assembly
from esper.services.tolaria.snapshot import Stateful
from esper.services.tolaria.trainer.config import TrainerConfig

if TYPE_CHECKING:
    from esper.services.tolaria.growth import Growth


def attached(
    config: TrainerConfig,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    *,
    validate: Callable[[nn.Module], Tensor],
    state: Sequence[Stateful],
    steps: int,
) -> "Growth":
    """Attach a run of ``steps`` optimizer steps to a wrapped model."""
    own = {
        "every": config.every or max(1, steps // 20),
        "steps": steps,
        "budget": config.budget,
        "controller": config.controller,
        "root": config.root,
    }
    return assembly.attach(
        model, optimizer, validate=validate, scheduler=schedule, state=state, **{**own, **config.attach}
    )
