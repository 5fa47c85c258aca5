"""Kernels train on channels-last maps as on others, whether or not the map needs a gradient itself."""

import pytest
import torch

from esper.blueprints import KernelModule
from esper.ir import REGISTRY, Layout, Site
from esper.testing.blueprints import random_weights

SITE = Site(Layout.CHANNELS_2D, 16)
NAMES = [name for name in REGISTRY.names() if REGISTRY.refusal(name, SITE) is None]
# The last three are maps of which torch cannot tell the format.
SHAPES = [(4, 16, 5, 6), (1, 16, 2, 2), (2, 16, 1, 1), (1, 16, 1, 1), (1, 16, 3, 1)]


def gradients(name: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    ir = REGISTRY.build(name, SITE)
    weights = {key: torch.from_numpy(value) for key, value in random_weights(ir, 0).items()}
    kernel = KernelModule(ir, weights)
    kernel(x).square().sum().backward()
    return {key: parameter.grad for key, parameter in kernel.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("needs_gradient", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_do_not_depend_on_the_memory_format(name: str, shape: tuple[int, ...], needs_gradient: bool) -> None:
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    last = plain.clone(memory_format=torch.channels_last)
    found = [gradients(name, x.requires_grad_(needs_gradient)) for x in (plain, last)]
    reference = gradients(name, plain.detach().requires_grad_())
    for grads in found:
        assert grads.keys() == reference.keys()
        for key, grad in grads.items():
            torch.testing.assert_close(grad, reference[key], rtol=1e-10, atol=1e-10)
