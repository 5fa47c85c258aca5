"""Shrinking: grafts that bring less than they cost leave, the one that owes most first.

Leaving a graft out for a moment compares two functions on the same examples, not two trainings that drift apart. So the error of
its worth is that of a paired difference over examples, which for a gain would be the wrong one (`acceptance`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from esper.errors import ConfigError
from esper.ir import BlueprintIR
from esper.kasmina import SeedState, placement_of, topology
from esper.kasmina.graft import GraftEntry, set_active
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.observation import Observer


@dataclass(frozen=True)
class Rent:
    """What a graft must bring to stay in a model that is to be small.

    Attributes:
        params: Share of the held-out loss that all parameters of the model would cost: at 0.1 a graft with a tenth of them must
            keep the loss lower by 1 %.
        flops: The same for the operations of a forward pass.
        errors: Standard errors by which a graft must bring less before it leaves.
    """

    params: float = 0.05
    flops: float = 0.05
    errors: float = 2.0

    def __post_init__(self) -> None:
        if min(self.params, self.flops, self.errors) < 0:
            raise ConfigError(f"{self} has a negative price", todo="give shares of 0 or more", code="ESP-2133")


@dataclass(frozen=True)
class Worth:
    """What a graft brings, and what it costs.

    Attributes:
        graft: Which.
        loss: How much higher the held-out loss is without it.
        error: Standard error of that.
        share: Loss and error are shares of the held-out loss when they are divided by this.
        params: Its share of the model's parameters.
        flops: Its share of the operations of a forward pass.
    """

    graft: GraftEntry
    loss: float
    error: float
    share: float
    params: float
    flops: float

    def due(self, rent: Rent) -> float:
        """Return what it must bring, as a share of the held-out loss."""
        return rent.params * self.params + rent.flops * self.flops

    def owes(self, rent: Rent) -> float:
        """Return by how much it surely brings less than that, as a share of the held-out loss; at 0 or below it stays."""
        return self.due(rent) - (self.loss + rent.errors * self.error) / self.share

    def told(self, rent: Rent) -> str:
        """Say it in one line."""
        percent = 100 / self.share
        return (
            f"without it the held-out loss is {percent * self.loss:+.2g} ± {percent * self.error:.2g} %; for {self.params:.1%} "
            f"of the parameters and {self.flops:.1%} of the operations {self.due(rent):.2%} are due"
        )


def worths(model: nn.Module, observer: Observer, team: Team) -> list[Worth]:
    """Leave every graft that was kept out for a moment; the model is as before afterwards.

    Args:
        model: Wrapped.
        observer: Measures held-out losses.
        team: The processes that train the model.

    Raises:
        ConfigError: If there is one held-out loss only, whose difference has no error.
    """
    kept = [graft for graft in topology(model) if graft.active and _is_kept(model, graft)]
    if not kept:
        return []
    whole = observer.measure(topology_version=None, capture=None)
    params = sum(parameter.numel() for parameter in model.parameters())
    found = []
    for graft in kept:
        with _left_out(model, graft):
            without = observer.measure(topology_version=None, capture=None)
        loss, error, share = _paired(team, without.losses, whole.losses)
        own = placement_of(model).place(graft.slot).price(BlueprintIR.from_json(graft.ir)).params
        found.append(Worth(graft, loss, error, share, own / params, 1.0 - without.flops / max(1, whole.flops)))
    return found


def _is_kept(model: nn.Module, graft: GraftEntry) -> bool:
    seed = placement_of(model).seeds.get((graft.slot, graft.seed_idx))
    return seed is not None and seed.state is SeedState.FOSSILIZED


@contextmanager
def _left_out(model: nn.Module, graft: GraftEntry) -> Iterator[None]:
    set_active(model, graft.slot, graft.seed_idx, False)
    try:
        yield
    finally:
        set_active(model, graft.slot, graft.seed_idx, True)


def _paired(team: Team, without: Tensor, whole: Tensor) -> tuple[float, float, float]:
    """Return the mean of paired differences, its standard error, and the size of the loss, over the examples of every process."""
    differences = without - whole
    own = [len(whole), float(differences.sum()), float(differences.square().sum()), float(whole.sum())]
    count, total, squares, losses = (sum(column) for column in zip(*team.gather(own), strict=True))
    if count < 2:
        raise ConfigError(
            "one held-out loss says nothing about what a graft is worth",
            why="its difference has no error",
            todo='use reduction="none" in the loss that validate returns',
            code="ESP-2120",
        )
    mean = total / count
    variance = max(0.0, squares - count * mean * mean) / (count - 1)
    return mean, math.sqrt(variance / count), max(abs(losses / count), 1e-12)
