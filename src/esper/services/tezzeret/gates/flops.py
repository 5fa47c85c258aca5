"""Counting the FLOPs of a forward pass as torch counts them."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from esper.blueprints.module import KernelModule


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up torch's own formulas; FlopCounterMode would import torch's compiler first, for over a second."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out


def counted_flops(module: KernelModule, x: torch.Tensor) -> int:
    """Return the FLOPs of one forward pass.

    Args:
        module: The kernel.
        x: Its input.
    """
    counter = _Counter()
    # The math form of attention, as there is no formula for the fused one of the CPU.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        module(x)
    return counter.total
