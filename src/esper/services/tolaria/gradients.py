"""Gradients that wait for their optimizer step, as between the micro-batches of one: a saved run has them too (law 5)."""

from collections.abc import Mapping
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.kasmina.shares import local
from esper.services.tolaria.optimizer import name_parameters

GRADIENTS = "gradients"
"""Key in the training's part of a saved run: the gradients that wait, by name."""


class Waiting:
    """Tells gradients that wait for the next optimizer step from those that the last one has used.

    Many loops clear gradients just before the next backward pass, so that used ones lie there when a run is saved.

    Args:
        model: Wrapped model.
        optimizer: Trains it.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model, self._optimizer = model, optimizer
        self._used: list[tuple[ref[Tensor], int]] = []

    def used(self) -> None:
        """Take every gradient as used; called after each optimizer step."""
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
        self._used = [(ref(gradient), gradient._version) for gradient in gradients if gradient is not None]

    def state_dict(self, *, copy: bool = True) -> dict[str, Tensor]:
        """Return each gradient that waits, by the name of its parameter: a copy, or the very tensor."""
        used = {id(gradient): version for there, version in self._used if (gradient := there()) is not None}
        named = name_parameters(self._model, self._optimizer)
        return {
            name: local(parameter.grad).clone() if copy else local(parameter.grad)
            for name, parameter in named.items()
            if parameter.grad is not None and used.get(id(parameter.grad)) != parameter.grad._version
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Let exactly what ``state_dict`` returned wait; the training itself has been restored."""
        for name, parameter in name_parameters(self._model, self._optimizer).items():
            parameter.grad = None
            if name not in state:
                continue
            if state[name].layout is torch.strided:
                parameter.grad = torch.zeros_like(parameter)
                local(parameter.grad).copy_(state[name])
            else:
                parameter.grad = state[name].clone()
