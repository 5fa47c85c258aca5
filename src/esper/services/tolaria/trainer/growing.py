"""The one place where the trainer meets the parts that ``esper.attach`` brings along."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper import assembly
from esper.services.tolaria.control import Control
from esper.services.tolaria.snapshot import Stateful
from esper.services.tolaria.trainer.config import TrainerConfig

if TYPE_CHECKING:
    from esper.services.tolaria.growth import Growth


def every_of(config: TrainerConfig, steps: int) -> int:
    """Return the optimizer steps between boundaries of a run of ``steps``."""
    return int(config.attach.get("every", config.every or max(1, steps // 20)))


def attached(
    config: TrainerConfig,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    *,
    validate: Callable[[nn.Module], Tensor],
    state: Sequence[Stateful],
    steps: int,
    control: Control | None = None,
) -> "Growth":
    """Attach a run of ``steps`` optimizer steps to a wrapped model, or to the DistributedDataParallel around it."""
    own = {
        "every": every_of(config, steps),
        "control": control,
        "steps": steps,
        "budget": config.budget,
        "controller": config.controller,
        "root": config.root,
    }
    return assembly.attach(
        model, optimizer, validate=validate, scheduler=schedule, state=state, **{**own, **config.attach}
    )
