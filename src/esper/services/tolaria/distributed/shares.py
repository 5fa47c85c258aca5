"""What each rank of a run has for itself, beside what all have alike: its generators, its ``state=``, its open loss."""

import json
import struct
from typing import Any

import safetensors.torch
import torch

from esper.errors import ConfigError
from esper.services.tolaria.checkpoint.packing import pack, unpack
from esper.services.tolaria.distributed.team import Team

SHARES = "shares"
"""Key in a saved state: one share per rank."""


def with_shares(team: Team, state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state with the shares of every rank in it, so that the leader's file serves all.

    Where parameters are sharded each rank saves a state of its own, and nothing is gathered.
    """
    state["ranks"] = team.size
    if team.size == 1 or team.sharded:
        return state
    words = team.gather_bytes(to_bytes([_share(part) for part in _parts(state)]))
    return {**state, SHARES: [from_bytes(word) for word in words]}


def with_own_share(team: Team, state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state with this rank's share in place; the given one is left as it was.

    Raises:
        ConfigError: If it was saved by another number of ranks.
    """
    ranks = state.get("ranks", 1)
    if ranks != team.size:
        raise ConfigError(
            f"the run was saved by {ranks} ranks, and goes on with {team.size}",
            why="each rank has generators and a state= of its own",
            todo="start as many processes, or take the model alone from what was saved",
            code="ESP-2146",
        )
    if SHARES not in state:
        return state
    own = {**state, "trials": {**state["trials"], "held": {}}, "training": {**state["training"]}}
    for key, held in state["trials"]["held"].items():
        own["trials"]["held"][key] = {**held, "training": {**held["training"]}}
    own["observer"] = {**state["observer"]}
    for part, share in zip(_parts(own), state[SHARES][team.rank], strict=True):
        part.update(share)
    return own


def _parts(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the dictionaries that hold something of a rank's own."""
    held = state["trials"]["held"]
    return [state["training"], state["observer"], *(held[key]["training"] for key in sorted(held))]


def _share(part: dict[str, Any]) -> dict[str, Any]:
    return {key: part[key] for key in ("rng", "others", "gradients", "total", "count", "watched") if key in part}


def to_bytes(share: object) -> bytes:
    """Return plain containers and tensors as bytes: a length, JSON, safetensors."""
    packed = pack(share)
    tensors = {str(place): tensor.detach().cpu().contiguous().clone() for place, tensor in enumerate(packed.tensors)}
    text = json.dumps(packed.tree).encode()
    return struct.pack("<Q", len(text)) + text + safetensors.torch.save(tensors)


def from_bytes(data: bytes) -> Any:
    """Read what ``to_bytes`` wrote."""
    (size,) = struct.unpack_from("<Q", data)
    tensors: dict[str, torch.Tensor] = safetensors.torch.load(data[8 + size :])
    return unpack(json.loads(data[8 : 8 + size]), [tensors[str(place)] for place in range(len(tensors))])
