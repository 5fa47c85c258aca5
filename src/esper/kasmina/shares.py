"""A parameter of which this rank holds a share (a DTensor), and the share itself; recognised without importing DTensor."""

from typing import Any, cast

from torch import Tensor


def is_share(tensor: Tensor) -> bool:
    """Tell whether a tensor stands for one that lies spread over several ranks."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, in the same memory; the tensor itself where that is all."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_share(tensor) else tensor
