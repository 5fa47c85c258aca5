"""A signal measured on the user's own probe: one training loss at a boundary, without a trace."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina import Signal
from esper.kasmina.compiling import eager
from esper.kasmina.flop_counter import FlopCounter
from esper.kasmina.incubation import paused
from esper.kasmina.quiet import quiet

Probe: TypeAlias = Callable[[nn.Module], Tensor]
"""Returns the training loss of one batch."""


def probed(model: nn.Module, signal: Signal, probe: Probe) -> tuple[dict[str, float], int]:
    """Run the user's probe once in training mode, forward and backward, and put buffers and generators back.

    No gradient is accumulated, so that those of the user's own step stay as they are.

    Args:
        model: Wrapped model.
        signal: Reads what passes through its slots.
        probe: Returns the training loss of one batch.

    Returns:
        The score of each slot, and the floating-point operations that it took.

    Raises:
        ConfigError: If the probe does not return a loss.
    """
    signal.arm()
    try:
        with quiet(model), paused(model), eager(), torch.enable_grad(), FlopCounter() as counter:
            model.train()
            loss = _checked(probe(model))
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    finally:
        signal.disarm()
    return signal.read(), counter.total + signal.flops


def _checked(loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss.squeeze()
    found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise ConfigError(
        f"probe returned {found}",
        why="it must return the training loss of one batch: a scalar that depends on the model's parameters",
        code="ESP-2121",
    )
