"""Signals that read the gradients and moments of the slots' parameters, in the optimizer's pre-step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from esper.kasmina.gradients import before_update
from esper.kasmina.placement import placement_of
from esper.kasmina.signals.signal import Scores

Trained: TypeAlias = Mapping[str, Sequence[nn.Parameter]]
"""Parameters that have a gradient, by slot; at least one at each."""
Measure: TypeAlias = Callable[[Trained, Optimizer], Scores]
"""Scores slots by their parameters, without waiting for a device."""


class ParameterSignal:
    """Measures slots on the user's next optimizer step; no module is hooked.

    Args:
        model: Wrapped model.
        optimizer: Its optimizer.
        slots: Names of slots to watch.
        measure: Makes scores of their parameters.

    Attributes:
        flops: Floating-point operations that ``read`` took.
    """

    in_forward = False

    def __init__(self, model: nn.Module, optimizer: Optimizer, slots: Sequence[str], measure: Measure) -> None:
        self.flops = 0
        self._optimizer, self._measure = optimizer, measure
        placement = placement_of(model)
        self._places = [placement.place(name) for name in slots]
        self._measured = Scores({})
        self._hooks: list[RemovableHandle] = []

    def arm(self) -> None:
        """Watch from now on, with a hook that ``disarm`` takes away."""
        self._hooks = [before_update(self._optimizer, self._look)]

    def disarm(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def read(self) -> dict[str, float]:
        """Return the score of each slot that could be measured."""
        self.flops += self._measured.flops
        return self._measured.read()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: nothing is seen before the optimizer steps, and a boundary follows that step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin anew."""

    @torch.no_grad()
    def _look(self) -> None:
        trained = {place.name: [p for p in place.module.parameters() if p.grad is not None] for place in self._places}
        self._measured = self._measure({slot: held for slot, held in trained.items() if held}, self._optimizer)


def row(numbers: Sequence[Tensor]) -> Tensor:
    """Return numbers, each a tensor without axes, as one tensor in float64 on the device of the first, without waiting for it."""
    device = numbers[0].device
    return torch.stack([number.to(device, torch.float64, non_blocking=True) for number in numbers])


def by_slot(values: Tensor, trained: Trained) -> Tensor:
    """Return the sums over each slot's parameters of values that are given parameter by parameter, slot after slot."""
    return torch.stack([part.sum() for part in torch.split(values, [len(held) for held in trained.values()])])
