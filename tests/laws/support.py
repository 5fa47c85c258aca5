"""Hosts of the zoo, wrapped, and kernels for their slots without a forge."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from esper.blueprints import initial_state, pack_kernel
from esper.ir import REGISTRY, digest_of
from esper.kasmina import Newborn, join, placement_of, plan, wrap
from esper.testing.zoo import ZOO, Batch, ZooHost

PRECISE = (torch.float32, torch.float64)


def wrapped(host: ZooHost, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """Return a fresh host with slots whose shapes are known."""
    return wrap(host.model(seed=seed, dtype=dtype), host.slots, example=host.batch(dtype=dtype).x)


def kernel_for(model: nn.Module, slot: str, blueprint: str, *, seed: int = 0) -> tuple[bytes, str]:
    """Return a kernel's bytes and their digest, as the forge makes them."""
    ir = REGISTRY.build(blueprint, placement_of(model).place(slot).site())
    data = pack_kernel(ir, initial_state(ir, seed=seed, dtype=torch.float32), seed=seed)
    return data, digest_of(data)


def graft(model: nn.Module, slot: str, blueprint: str, *, seed_idx: int = 0, seed: int = 0) -> Newborn:
    """Join a freshly built kernel."""
    data, kernel_id = kernel_for(model, slot, blueprint, seed=seed)
    return join(model, slot, seed_idx, data, kernel_id=kernel_id, blueprint=blueprint)


def output(model: nn.Module, batch: Batch, *, seed: int = 0) -> Tensor:
    """Run the model with its dropout drawn from a seed."""
    torch.manual_seed(seed)
    result: Tensor = model(batch.x)
    return result


def places() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield every host and slot, with the blueprints that can be grafted there."""
    for name, host in ZOO.items():
        found = plan(host.model(), host.batch().x, host.slots)
        for place in found.places:
            yield name, place.name, tuple(graft.blueprint for graft in found.grafts if graft.slot == place.name)


PLACES = tuple(places())
EVERY_PLACE = pytest.mark.parametrize(
    ("name", "slot", "blueprints"), PLACES, ids=[f"{name}-{slot}" for name, slot, _ in PLACES]
)
EVERY_HOST = pytest.mark.parametrize("host", ZOO.values(), ids=ZOO)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Tell whether two states have equal keys in equal order, and equal bits."""
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return every gradient by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
