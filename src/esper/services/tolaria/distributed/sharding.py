"""Parameters of which each rank holds a share: ``fully_shard`` (FSDP2), whose parameters are DTensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.kasmina.placement import Place
from esper.kasmina.shares import is_share, local
from esper.services.tolaria.distributed.team import Team


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a model is one of ``fully_shard``'s."""
    return any(
        cls.__name__ == "FSDPModule" and cls.__module__.startswith("torch.distributed") for cls in type(model).__mro__
    )


def reshard(model: nn.Module) -> None:
    """Let every module have its share again: one that ran without a backward pass still has the whole."""
    for module in model.modules():
        if is_sharded(module):
            cast(Any, module).reshard()


@contextmanager
def settled(team: Team, model: nn.Module) -> Iterator[None]:
    """Let a sharded model have its shares before the block and after it."""
    if not team.sharded:
        yield
        return
    reshard(model)
    try:
        yield
    finally:
        reshard(model)


@dataclass(frozen=True)
class Sharder:
    """Shards newborns as their host is, and keeps every module at its share when the topology changes.

    Args:
        model: Sharded itself.
    """

    model: nn.Module

    def follow(self) -> None:
        """Let every module have its share, on which snapshots and restores work."""
        reshard(self.model)

    def shard(self, kernel: nn.Module, place: Place) -> None:
        """Shard a kernel on the mesh of the host, in the precision of the module around its slot."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        around = self._around(place.name)
        host = around._get_fsdp_state()._mp_policy  # there is no public way to read it
        policy = MixedPrecisionPolicy(param_dtype=host.param_dtype, reduce_dtype=host.reduce_dtype)
        fully_shard(kernel, mesh=self.mesh, mp_policy=policy)

    @property
    def mesh(self) -> Any:
        """The device mesh of the host's parameters."""
        return next(cast(Any, p).device_mesh for p in self.model.parameters() if is_share(p))

    def _around(self, name: str) -> Any:
        """Return the innermost sharded module in which a slot lies."""
        while name and not is_sharded(self.model.get_submodule(name)):
            name = name.rpartition(".")[0]
        return self.model.get_submodule(name)


def shares_like(parameter: Tensor, moments: Mapping[str, Any]) -> dict[str, Any]:
    """Return moments as shares like their parameter, where they were saved as this rank's plain tensors."""
    if not is_share(parameter):
        return dict(moments)
    return {key: _share_like(cast(Any, parameter), value) for key, value in moments.items()}


def _share_like(parameter: Any, value: Any) -> Any:
    if not isinstance(value, Tensor) or is_share(value) or value.ndim == 0:
        return value
    if value.shape != local(parameter).shape:
        return value
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        return DTensor.from_local(
            value, parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip
