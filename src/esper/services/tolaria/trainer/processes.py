"""The processes that a trainer trains in, and what keeps their models equal."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from esper.errors import ConfigError
from esper.services.tolaria.distributed.sharding import is_sharded
from esper.services.tolaria.distributed.team import Processes, Team


def team_of(model: nn.Module, ddp: Mapping[str, Any], *, control: str | None) -> Team:
    """Return the processes that train a model together: those of the default group of ``torch.distributed``.

    Args:
        model: The user's own.
        ddp: Arguments of DistributedDataParallel.
        control: What a graft is held against.

    Raises:
        ConfigError: If the trainer cannot train it so; nothing was changed.
    """
    _check_plain(model)
    if not (dist.is_available() and dist.is_initialized()):
        _check_launched()
        return Team()
    if dist.get_world_size() == 1:
        return Team()
    if control is not None:
        raise ConfigError(
            f"control={control!r} in {dist.get_world_size()} processes",
            why="the twin's gradients would not be averaged, so that each process would train another one",
            todo="leave control= out; a gain is held against graft-free windows of the run",
            code="ESP-2715",
        )
    return Processes(buffers_follow=bool(ddp.get("broadcast_buffers", True)))


def distributed(team: Team, model: nn.Module, ddp: Mapping[str, Any]) -> nn.Module:
    """Return what is called in training: the model, or the DistributedDataParallel around it."""
    return model if team.size == 1 else DistributedDataParallel(model, **ddp)


def _check_plain(model: nn.Module) -> None:
    if isinstance(model, (DataParallel, DistributedDataParallel)) or is_sharded(model):
        raise ConfigError(
            f"the trainer was given a {type(model).__name__}",
            why="it distributes a model itself, and has not been tried with parameters of which each process holds a share",
            todo="give it the model alone, or use esper.attach in a loop of your own, as examples/torchrun_ddp.py does",
            code="ESP-2712",
        )


def _check_launched() -> None:
    if dist.is_available() and dist.is_torchelastic_launched():
        raise ConfigError(
            "torchrun started this process, and torch.distributed is not initialised",
            why="every process would train, and grow, a model of its own",
            todo='call torch.distributed.init_process_group("gloo") or "nccl" first, as examples/torchrun_trainer.py does',
            code="ESP-2716",
        )
