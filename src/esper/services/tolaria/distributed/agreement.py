"""What every rank measured on its own share of the data, as one number for all."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from esper.kasmina import placement_of, topology
from esper.kasmina.placement import CHILD
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.held_out import Measurement


def agreed_losses(team: Team, measured: Measurement) -> Measurement:
    """Return a measurement with the mean loss over the examples of every rank."""
    if team.size == 1:
        return measured
    rows = team.gather([float(measured.losses.sum()), float(len(measured.losses))])
    return replace(measured, agreed=sum(row[0] for row in rows) / sum(row[1] for row in rows))


def agreed_window(
    team: Team, train: float | None, scores: Mapping[str, float], slots: Sequence[str]
) -> tuple[float | None, dict[str, float]]:
    """Return the mean training loss, and the mean score of each slot, over the ranks that have one."""
    if team.size == 1:
        return train, dict(scores)
    values = [train, *(scores.get(slot) for slot in slots)]
    own = [number for value in values for number in ((0.0, 0.0) if value is None else (value, 1.0))]
    rows = team.gather(own)
    sums = [sum(row[place] for row in rows) for place in range(len(own))]
    means = [sums[at] / sums[at + 1] if sums[at + 1] else None for at in range(0, len(sums), 2)]
    return means[0], {slot: mean for slot, mean in zip(slots, means[1:], strict=True) if mean is not None}


def whole_norms(team: Team) -> Callable[[list[float]], list[float]] | None:
    """Return what makes norms over all ranks' shares of norms over this one's; None where each rank holds everything."""
    if not team.sharded:
        return None
    return lambda norms: [
        math.sqrt(sum(norm * norm for norm in column)) for column in zip(*team.gather(norms), strict=True)
    ]


def synchronise_buffers(team: Team, model: nn.Module) -> None:
    """Give every rank the leader's buffers where DDP does so before each forward pass, which a boundary brings forward."""
    if team.buffers_follow:
        team.synchronise([buffer for _, buffer in sorted(model.named_buffers())])


def standing(team: Team, model: nn.Module) -> tuple[object, ...]:
    """Return what must be equal on every rank: the grafts, the states of the seeds, and the newborns' parameters, to the bit."""
    seeds = sorted((seed.slot, seed.seed_idx, seed.state.value) for seed in placement_of(model).seeds.values())
    return topology(model), seeds, None if team.sharded else _digest(model)


def _digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if f"{CHILD}." in name:
            total.update(name.encode() + _bytes(parameter))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
