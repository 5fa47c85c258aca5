"""What a signal is: a score for each slot, from one step of the user's training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What was measured, still on its devices.

    Attributes:
        values: One number, a tensor without axes, for each slot that could be measured.
        flops: Floating-point operations that it took; element-wise work counts nothing.
    """

    values: Mapping[str, Tensor]
    flops: int = 0

    def read(self) -> dict[str, float]:
        """Return the numbers, with one wait for the device."""
        if not self.values:
            return {}
        device = next(iter(self.values.values())).device
        flat = torch.stack([value.detach().to(device, torch.float64) for value in self.values.values()])
        return dict(zip(self.values, flat.tolist(), strict=True))


class Signal(Protocol):
    """Scores slots: the higher, the more a slot wants to grow.

    The watched step computes to the bit what it would compute unwatched, and waits for no device; ``read`` alone does.

    Attributes:
        in_forward: Whether modules carry hooks while it is armed, so that compiled code of theirs must not run.
        flops: Floating-point operations that ``read`` took.
    """

    in_forward: bool
    flops: int

    def arm(self) -> None:
        """Watch from now on, until ``disarm``."""
        ...

    def disarm(self) -> None:
        """Stop watching."""
        ...

    def read(self) -> dict[str, float]:
        """Return the score of each slot that was seen."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        ...
