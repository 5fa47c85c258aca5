"""Do values and gradients stay finite, and does training lower a loss?"""

import torch
from torch import Tensor

from esper.blueprints.module import KernelModule
from esper.contracts.kernel import GateResult
from esper.services.tezzeret.gates.trial import Trial, wish
from esper.services.tezzeret.gates.verdict import Findings


def stability(trial: Trial) -> GateResult:
    """Try inputs over eight orders of magnitude, then train."""
    found = Findings()
    _expect_finite(trial, found)
    if not found.reasons:
        _expect_learning(trial, found)
    return found.result()


def _expect_finite(trial: Trial, found: Findings) -> None:
    scales = trial.config.half_input_scales if trial.dtype is torch.float16 else trial.config.input_scales
    newborn, grown = trial.newborn(), trial.grown_module(trial.dtype)
    for scale in (0.0, *scales):
        x = trial.input(trial.probes.odd, scale=scale)
        with torch.no_grad():
            found.expect(_is_finite(newborn(x)), f"F(x) is not finite at birth at input scale {scale:g}")
        grown.zero_grad()
        y = grown(x)
        y.sum().backward()
        grads = [parameter.grad for parameter in grown.parameters() if parameter.grad is not None]
        found.expect(_is_finite(y), f"F(x) is not finite at input scale {scale:g}")
        found.expect(all(map(_is_finite, grads)), f"gradients are not finite at input scale {scale:g}")
    found.measure("largest_finite_input_scale", max(scales))


def _expect_learning(trial: Trial, found: Findings) -> None:
    """Follow the gradient, halving a step that does not lower the loss: a true gradient always lowers it in the end."""
    newborn = trial.newborn().train()
    x = trial.input(trial.probes.batch, salt=7)
    target = wish(trial, x)
    first = last = _loss(newborn, x, target)
    for step in range(trial.config.fit_steps):
        lower = _stepped(newborn, x, target, trial.config.fit_halvings)
        if lower is None:
            found.expect(step > 0, "the loss does not fall along its gradient")
            break
        last = lower
    found.expect(last < first, f"training does not lower the loss: {first:.6g} before, {last:.6g} after")
    found.measure("loss_ratio_after_fit", last / first if first else 1.0)


def _stepped(newborn: KernelModule, x: Tensor, target: Tensor, halvings: int) -> float | None:
    """Take one step that lowers the loss, and return the new loss, or None where none does."""
    newborn.zero_grad()
    loss = (newborn(x).float() - target).square().mean()
    loss.backward()
    before = float(loss.detach())
    ways = [(parameter, parameter.detach().clone(), parameter.grad) for parameter in newborn.parameters()]
    norm = sum(float(grad.float().square().sum()) for _, _, grad in ways if grad is not None)
    if norm == 0.0:
        return None
    # The step at which a straight loss would be halved.
    rate = 0.5 * before / norm
    for _ in range(halvings):
        with torch.no_grad():
            for parameter, held, grad in ways:
                if grad is not None:
                    parameter.copy_(held - rate * grad)
        after = _loss(newborn, x, target)
        if after < before:
            return after
        rate *= 0.5
    return None


def _loss(module: KernelModule, x: Tensor, target: Tensor) -> float:
    with torch.no_grad():
        return float((module(x).float() - target).square().mean())


def _is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
