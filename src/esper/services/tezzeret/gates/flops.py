"""Counting the FLOPs of a forward pass as torch counts them."""

import torch

from esper.blueprints.module import KernelModule
from esper.kasmina.flop_counter import FlopCounter


def counted_flops(module: KernelModule, x: torch.Tensor) -> int:
    """Return the FLOPs of one forward pass.

    Args:
        module: The kernel.
        x: Its input.
    """
    counter = FlopCounter()
    with torch.no_grad(), counter:
        module(x)
    return counter.total
