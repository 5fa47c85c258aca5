"""Clipping of gradients, after they were unscaled."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from esper.services.tolaria.trainer.choices import check


@dataclass(frozen=True)
class Clipping:
    """Limits on gradients.

    Attributes:
        norm: Largest norm of all of them together, or None.
        value: Largest absolute value of each number, or None; applied first.

    Raises:
        ConfigError: If a limit is not positive.
    """

    norm: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("norm", self.norm), ("value", self.value)):
            check(limit is None or limit > 0, f"clipping {name}={limit}", why="a limit is positive")

    def apply(self, optimizer: Optimizer) -> None:
        """Clip what the optimizer holds, the newborn's included."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.value is not None:
            nn.utils.clip_grad_value_(parameters, self.value)
        if self.norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.norm)
