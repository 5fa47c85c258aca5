"""Growth beside ``accelerate``: a run in the folders that ``Accelerator.save_state`` writes.

```python
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
growth = attach_prepared(accelerator, model, optimizer, schedule, validate=validate, every=200, budget="+30%")
keep_with(accelerator, growth)
```
"""

from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from esper.assembly import attach
from esper.errors import ConfigError, NotFound
from esper.integrations.extras import missing
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.schedules import Schedule

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.scheduler import AcceleratedScheduler
except ImportError as error:
    raise missing("accelerate", error, extra="transformers") from error

KEY = "esper"
"""Folder of the run in a folder of ``save_state``."""


def attach_prepared(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: Schedule | AcceleratedScheduler | None = None,
    **options: Any,
) -> Growth:
    """Attach a run to what ``accelerator.prepare`` returned: to the parts inside its wrappers.

    Args:
        accelerator: It prepared the parts.
        model: Prepared; ``esper.wrap`` has given it slots.
        optimizer: Prepared.
        scheduler: Prepared, or None.
        options: Further arguments of ``esper.attach``; a scaler is added to ``state=``.

    Raises:
        ConfigError: As ``esper.attach`` does, or where several processes train otherwise than with DistributedDataParallel.
    """
    ddp = model if isinstance(model, DistributedDataParallel) else None
    if accelerator.num_processes > 1 and ddp is None:
        raise ConfigError(
            f"growth does not work with {accelerator.distributed_type} of Accelerate",
            why="it was tried within Accelerate in one process, and in several with DistributedDataParallel",
            todo="prepare the model for one of these, or use esper.attach in a loop of your own",
            code="ESP-2465",
        )
    state = tuple(options.pop("state", ()))
    if accelerator.scaler is not None:
        state = (*state, accelerator.scaler)
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    if isinstance(scheduler, AcceleratedScheduler):
        scheduler = scheduler.scheduler
    own = accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    return attach(own, optimizer, scheduler=scheduler, state=state, ddp=ddp, **options)


def keep_with(accelerator: Accelerator, growth: Growth) -> None:
    """Let ``save_state`` write the run, and ``load_state`` read it before it reads anything else.

    Accelerate's own ``register_for_checkpointing`` would unpickle it, and would come after the model's values, which need
    the grafts to be there.
    """

    def save(_models: Any, _weights: Any, folder: str) -> None:
        state = growth.state_dict()  # every process has a part of it
        if accelerator.is_main_process:
            _manager(folder).save(state, step=growth.spent_steps)

    def load(_models: Any, folder: str) -> None:
        try:
            growth.load_state_dict(_manager(folder).load())
        except NotFound as error:
            raise ConfigError(
                f"{folder} has no growing run",
                why=f"its folder {KEY} is empty or was not there",
                todo="load a state that was saved after keep_with(accelerator, growth)",
                code="ESP-2466",
            ) from error

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _manager(folder: str) -> CheckpointManager:
    return CheckpointManager(Path(folder) / KEY, keep_last=1, keep_best=0)


__all__ = ["attach_prepared", "keep_with"]
