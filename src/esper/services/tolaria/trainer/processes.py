"""The processes that train: the trainer has one of them only."""

import torch.distributed as dist

from esper.errors import ConfigError


def check_alone() -> None:
    """Refuse to train beside other processes, before the data are split or the model is wrapped.

    Raises:
        ConfigError: If ``torch.distributed`` was initialised with more than one.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ConfigError(
            f"the trainer runs in {dist.get_world_size()} processes",
            why="torch.distributed is initialised, and the trainer neither shares the data out among ranks nor averages their "
            "gradients; every rank would train, and grow, a model of its own",
            todo="start it in one process, or use esper.attach with DistributedDataParallel in a loop of your own, as "
            "examples/torchrun_ddp.py does",
            code="ESP-2712",
        )
