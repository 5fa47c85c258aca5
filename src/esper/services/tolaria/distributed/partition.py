"""An optimizer that partitions its moments over ranks: ``ZeroRedundancyOptimizer``; each lies with the owner of its parameter.

Which rank owns what is torch's own function of the groups and their order, so groups that are put back fall to who had them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.optim import Optimizer

from esper.services.tolaria.distributed.shares import from_bytes, to_bytes
from esper.services.tolaria.distributed.team import Processes, Team

PARTS = "moments"
"""Key in a saved training: moments by name of the parameter."""


def is_partitioned(optimizer: Optimizer) -> bool:
    """Tell whether each rank holds the moments of its own parameters only."""
    return any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__)


def overlaps(optimizer: Optimizer) -> bool:
    """Tell whether a partitioned optimizer steps inside the backward pass; there is no public way to ask."""
    return is_partitioned(optimizer) and bool(getattr(optimizer, "_overlap_with_ddp", False))


def holder_of(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that holds this rank's moments."""
    return cast(Any, optimizer).optim if is_partitioned(optimizer) else optimizer


def kind_of(optimizer: Optimizer) -> str:
    """Return the name of an optimizer's class, and of the one that it partitions."""
    name = type(optimizer).__name__
    return f"{name} of {type(holder_of(optimizer)).__name__}" if is_partitioned(optimizer) else name


def regroup(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Let an optimizer have these groups; a partitioned one begins with no moments.

    That one has no way to let a parameter go, so its public constructor is run on it once more. Hooks, the list of groups, and
    the groups themselves stay the same objects.
    """
    own = optimizer.param_groups
    if not is_partitioned(optimizer):
        own[:] = groups
        return
    from torch.distributed.optim import ZeroRedundancyOptimizer

    made = cast(ZeroRedundancyOptimizer, optimizer)
    kept = {name: value for name, value in vars(made).items() if name.endswith("_hooks")}
    ZeroRedundancyOptimizer.__init__(
        made, list(groups), type(made.optim), made.process_group, made.parameters_as_bucket_view, **made.defaults
    )
    vars(made).update(kept)
    own[:] = made.param_groups
    made.param_groups = own


def moved(optimizer: Optimizer, before: Mapping[torch.Tensor, Any]) -> dict[torch.Tensor, Any]:
    """Return the moments that this rank owns now.

    Collective over the ranks of the optimizer; what changes its owner travels, and nothing else.

    Args:
        optimizer: Partitioned, with its groups as they are now.
        before: Moments by parameter that this rank owned before.
    """
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    mine = {id(parameter) for group in holder_of(optimizer).param_groups for parameter in group["params"]}
    lost = {str(n): before[p] for n, p in enumerate(every) if p in before and id(p) not in mine}
    found: dict[str, Any] = {}
    for word in Processes(cast(Any, optimizer).process_group).gather_bytes(to_bytes(lost)):
        found.update(from_bytes(word))
    held = {p: before.get(p, found.get(str(n))) for n, p in enumerate(every) if id(p) in mine}
    return {parameter: moments for parameter, moments in held.items() if moments is not None}


def with_all_moments(team: Team, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state with the moments of every rank, where an optimizer partitions them; collective then."""
    if team.size == 1 or not is_partitioned(optimizer):
        return state
    held: dict[str, Any] = state["trials"]["held"]
    parts = [state["training"], *(held[key]["training"] for key in sorted(held))]
    words = [from_bytes(word) for word in team.gather_bytes(to_bytes([part[PARTS] for part in parts]))]
    for number, part in enumerate(parts):
        merged = {name: moments for word in words for name, moments in word[number].items()}
        part[PARTS] = dict(sorted(merged.items()))
    return state
