"""How a model that a user hands to ``attach`` is trained: by this process alone, or with others."""

from dataclasses import dataclass
from typing import cast

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from esper.errors import ConfigError
from esper.kasmina import placement_of
from esper.services.tolaria.distributed.partition import overlaps
from esper.services.tolaria.distributed.reducer import reducer_of
from esper.services.tolaria.distributed.sharding import Sharder, is_sharded
from esper.services.tolaria.distributed.team import Processes, Team
from esper.services.tolaria.snapshot import Follower


@dataclass(frozen=True)
class Formation:
    """Who trains a model.

    Attributes:
        model: The wrapped model itself.
        team: The processes.
        ddp: What keeps them equal, or None.
    """

    def followers(self) -> tuple[Follower, ...]:
        """Return what has to fit the model's topology."""
        if self.team.sharded:
            sharder = Sharder(self.model)
            placement_of(self.model).distribute = sharder.shard
            return (sharder,)
        return () if self.ddp is None or self.team.size == 1 else (reducer_of(self.ddp),)

    model: nn.Module
    team: Team
    ddp: DistributedDataParallel | None = None


def formation_of(model: nn.Module, ddp: DistributedDataParallel | None = None) -> Formation:
    """Find out how a model is trained.

    Args:
        model: The wrapped model, or the DistributedDataParallel around it.
        ddp: The DistributedDataParallel around something of which the model is a part, or None.

    Raises:
        ConfigError: If other processes train beside this one, and nothing says how this model's are kept equal.
    """
    if ddp is not None:
        return _part_of(ddp, model)
    if isinstance(model, DataParallel):
        raise ConfigError(
            "the model is in a DataParallel",
            why="it trains copies that are thrown away after each step",
            todo="use DistributedDataParallel, one process per device",
            code="ESP-2140",
        )
    if isinstance(model, DistributedDataParallel):
        return Formation(cast(nn.Module, model.module), _team_of(model), model)
    if is_sharded(model):
        return Formation(model, Processes(sharded=True))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ConfigError(
            "the model is not distributed, and other processes train beside this one",
            why="torch.distributed is initialised; without a reducer every rank would train, and grow, a model of its own",
            todo="give attach the DistributedDataParallel itself, or fully_shard the model first",
            code="ESP-2141",
        )
    return Formation(model, Team())


def _part_of(ddp: DistributedDataParallel, model: nn.Module) -> Formation:
    """Return the formation of a part of what a DistributedDataParallel is around."""
    if not isinstance(ddp, DistributedDataParallel) or all(part is not model for part in ddp.modules()):
        raise ConfigError(
            f"ddp= is a {type(ddp).__name__} that does not hold the model",
            why="its gradients would be averaged by nobody",
            todo="give the DistributedDataParallel whose module the model is, or is a part of",
            code="ESP-2149",
        )
    return Formation(model, _team_of(ddp), ddp)


def _team_of(ddp: DistributedDataParallel) -> Team:
    group = ddp.process_group
    if dist.get_world_size(group) == 1:
        return Team()
    return Processes(group, buffers_follow=bool(ddp.broadcast_buffers))


def check_apart(team: Team, incubate: int) -> None:
    """Refuse to let a kernel learn apart from a sharded model.

    Raises:
        ConfigError: If it would.
    """
    if team.sharded and incubate:
        raise ConfigError(
            f"incubate={incubate} for a sharded model",
            why="what learns apart is whole on every rank, and would have to be sharded with its moments when it joins",
            todo="leave incubate out; a graft is neutral when it joins",
            code="ESP-2145",
        )


def check_sharing(team: Team, optimizer: Optimizer, probe: object) -> None:
    """Refuse what cannot follow growth on several ranks.

    Raises:
        ConfigError: If the optimizer steps inside the backward pass, or a probe would run on sharded parameters.
    """
    if overlaps(optimizer):
        raise ConfigError(
            "the optimizer is a ZeroRedundancyOptimizer with overlap_with_ddp=True",
            why="it steps inside the backward pass on the buckets of DistributedDataParallel, which a newborn is in none of",
            todo="leave overlap_with_ddp out, and call optimizer.step() after backward()",
            code="ESP-2147",
        )
    if team.sharded and probe is not None:
        raise ConfigError(
            "probe= was given for a sharded model",
            why="fully_shard gathers parameters for backward(), and a probe takes gradients without accumulating them",
            todo="leave probe out; the signal is measured on the step before a boundary",
            code="ESP-2148",
        )
