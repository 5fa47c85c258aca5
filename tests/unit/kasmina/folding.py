"""Models that have grown and are folded."""

import pickletools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from esper.blueprints import pack_kernel
from esper.ir import BlueprintIR, Graph, Handle, Layout, Site, digest_of
from esper.ir.builder import build
from esper.kasmina import Slot, fold, join, wrap
from esper.testing.blueprints import random_input, random_weights
from esper.testing.zoo import ZooHost
from tests.laws.support import graft, wrapped

PADDED = "torch_transformer"
TOKENS, IMAGES = Layout.TOKENS, Layout.CHANNELS_2D


def grown(host: ZooHost, slot: str, *names: str) -> nn.Module:
    """Return a model with grafts that have learned something, the first of them at 0.7 of its strength."""
    model = wrapped(host)
    for seed_idx, name in enumerate(names):
        stir(graft(model, slot, name, seed_idx=seed_idx, seed=seed_idx).kernel)
    model.get_submodule(f"{slot}.esper_grafts.0").alpha.fill_(0.7)
    return model


def stir(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


@contextmanager
def padding_may_be_warned_of(name: str) -> Iterator[None]:
    with warnings.catch_warnings():
        if name == PADDED:
            warnings.filterwarnings("ignore", message="encoder computes positions")
        yield


def folded(model: nn.Module, host: ZooHost) -> nn.Module:
    with padding_may_be_warned_of(host.name):
        return fold(model, host.batch().x)


def names_in(data: bytes) -> set[str]:
    """Return every module that a pickle imports from, and every text in it."""
    found = {str(argument) for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    return {name for name in found if "esper" in name}


# -- it is the same model ------------------------------------------------------------------------------------------------


def model_with(ir: BlueprintIR, *, alpha: float = 1.0, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a model that is one blueprint on its input, in float64, and an input."""
    weights = {name: torch.from_numpy(value) for name, value in random_weights(ir, seed).items()}
    x = torch.from_numpy(random_input(ir, batch=3, extent=5, seed=seed))
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model.register_buffer("kind", torch.zeros((), dtype=torch.float64))
    wrap(model, Slot("0", layout=ir.layout), example=x)
    data = pack_kernel(ir, weights, seed=0)
    join(model, "0", 0, data, kernel_id=digest_of(data), alpha=alpha)
    return model, x


def drawn(layout: Layout, draw: Callable[[Graph], Handle], channels: int = 4) -> BlueprintIR:
    return build(lambda g, site: draw(g), Site(layout, channels), "drawn")
