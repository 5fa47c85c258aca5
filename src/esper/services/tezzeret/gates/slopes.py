"""Gradients against central differences in float64."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esper.blueprints.module import KernelModule
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.gates.verdict import Findings


@dataclass(frozen=True)
class _Climb:
    """A loss, and every place at which it can be moved.

    Attributes:
        module: The kernel.
        x: Its input.
        ruler: Weights of the sum that is the loss.
        places: The input and the parameters.
        ways: A random direction for each.
    """

    module: KernelModule
    x: Tensor
    ruler: Tensor
    places: Mapping[str, Tensor]
    ways: Mapping[str, Tensor]

    def loss(self, names: list[str], step: float) -> float:
        """Return the loss when the named places are moved by ``step`` along their directions."""
        held = {name: self.places[name].detach().clone() for name in names}
        with torch.no_grad():
            for name in names:
                self.places[name].add_(self.ways[name], alpha=step)
            value = float((self.module(self.x) * self.ruler).sum())
            for name in names:
                self.places[name].copy_(held[name])
        return value

    def slope(self, name: str) -> float:
        """Return what the gradient says about one direction."""
        grad = self.places[name].grad
        return 0.0 if grad is None else float((grad * self.ways[name]).sum())


def check_slopes(trial: Trial, found: Findings) -> None:
    """Compare the gradient with differences, along one random direction through all parameters and the input.

    Such a direction moves every coordinate at once, so that one wrong entry shows; single coordinates would miss most.
    Where it does not fit, each tensor is looked at by itself, to name the one that is wrong.
    """
    climb, level = _climb(trial)
    names = list(climb.places)
    error = _error(climb, names, level, trial)
    found.measure("error_gradient", error)
    if error <= trial.config.slope_tolerance:
        return
    errors = {name: _error(climb, [name], level, trial) for name in names}
    wrong = {name: size for name, size in errors.items() if size > trial.config.slope_tolerance}
    for name, size in (wrong or {"all together": error}).items():
        found.reasons.append(f"the gradient of {name} is off by {size:.3g} of its size")


def _climb(trial: Trial) -> tuple[_Climb, float]:
    """Return the loss with its gradients, and its value."""
    rng = np.random.default_rng((trial.config.seed, 2))
    module = trial.grown_module(torch.float64).train()
    x = trial.input(trial.probes.odd).to(torch.float64).requires_grad_()
    y = module(x)
    ruler = torch.from_numpy(rng.standard_normal(y.shape))
    level = (y * ruler).sum()
    level.backward()
    places = {"the input": x, **dict(module.named_parameters())}
    ways = {name: torch.from_numpy(rng.standard_normal(place.shape)) for name, place in places.items()}
    return _Climb(module, x, ruler, places, ways), float(level.detach())


def _error(climb: _Climb, names: list[str], level: float, trial: Trial) -> float:
    """Return how far the gradient is off at the best step width, relative to the slope or the loss itself."""
    slopes = [climb.slope(name) for name in names]
    scale = max(sum(map(abs, slopes)), abs(level), 1e-12)
    best = float("inf")
    for step in trial.config.slope_steps:
        measured = (climb.loss(names, step) - climb.loss(names, -step)) / (2.0 * step)
        best = min(best, abs(measured - sum(slopes)) / scale)
        if best <= trial.config.slope_tolerance:
            break
    return best
