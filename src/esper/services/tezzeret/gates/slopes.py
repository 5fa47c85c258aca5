"""Gradients against central differences in float64."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from esper.blueprints.module import KernelModule
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.gates.verdict import Findings


def check_slopes(trial: Trial, found: Findings) -> None:
    """Compare the gradient of every tensor, and of the input, along one random direction each.

    A direction moves all coordinates at once, so that one wrong entry shows; a few single coordinates would miss most.
    """
    rng = np.random.default_rng((trial.config.seed, 2))
    module = trial.grown_module(torch.float64).train()
    x = trial.input(trial.probes.odd).to(torch.float64).requires_grad_()
    ruler = torch.from_numpy(rng.standard_normal(x.shape))
    level = (module(x) * ruler).sum()
    level.backward()
    worst = 0.0
    for name, place in (("the input", x), *module.named_parameters()):
        way = torch.from_numpy(rng.standard_normal(place.shape))
        grad = torch.zeros_like(place) if place.grad is None else place.grad
        slope = float((grad * way).sum())
        scale = max(abs(slope), abs(float(level.detach())), 1e-12)
        error = _error(_along(module, x, ruler, place, way), slope, scale, trial)
        worst = max(worst, error)
        found.expect(error <= trial.config.slope_tolerance, f"the gradient of {name} is off by {error:.3g} of its size")
    found.measure("error_gradient", worst)


def _along(module: KernelModule, x: Tensor, ruler: Tensor, place: Tensor, way: Tensor) -> Callable[[float], float]:
    """Return the loss as a function of how far a tensor is moved."""
    held = place.detach().clone()

    def loss(step: float) -> float:
        with torch.no_grad():
            place.copy_(held + step * way)
            value = float((module(x) * ruler).sum())
            place.copy_(held)
        return value

    return loss


def _error(loss: Callable[[float], float], slope: float, scale: float, trial: Trial) -> float:
    """Return how far the gradient is off, relative to ``scale``, at the best step width."""
    best = float("inf")
    for step in trial.config.slope_steps:
        measured = (loss(step) - loss(-step)) / (2.0 * step)
        best = min(best, abs(measured - slope) / scale)
        if best <= trial.config.slope_tolerance:
            break
    return best
