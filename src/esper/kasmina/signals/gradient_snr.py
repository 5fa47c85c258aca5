"""The gradient's signal-to-noise ratio, from the moments that Adam keeps anyway."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.errors import ConfigError
from esper.kasmina.shares import local
from esper.kasmina.signals.parameters import Trained, by_slot, row
from esper.kasmina.signals.signal import Scores


def gradient_snr(trained: Trained, optimizer: Optimizer) -> Scores:
    """Return the squared mean of each slot's gradients over their variance, both summed over its parameters.

    For gradients that are drawn alike at every step, the corrected first moment squared is m^2 + k v on average, and the
    second m^2 + v, with the mean m, the variance v, and the sum k of the squared weights with which the first averages. So
    both are known without bias; a ratio that came out negative is 0, as it is before the second step. It is high where
    batches agree on what is to change.

    Raises:
        ConfigError: If the optimizer keeps no such moments.

    References:
        Liu, Jiang, Bai, Chen, Wang 2020, "Understanding Why Neural Networks Generalize Well Through GSNR of Parameters",
        equation 1. Kingma, Ba 2015, "Adam: A Method for Stochastic Optimization", section 3.
    """
    betas = {id(p): group["betas"] for group in optimizer.param_groups if "betas" in group for p in group["params"]}
    known = {slot: [p for p in parameters if optimizer.state.get(p)] for slot, parameters in trained.items()}
    known = {slot: parameters for slot, parameters in known.items() if parameters}
    held = [p for parameters in known.values() for p in parameters]
    if any("exp_avg_sq" not in optimizer.state[p] or id(p) not in betas for p in held):
        raise no_moments(optimizer)
    if not held:
        return Scores({})
    signal, noise = (
        by_slot(part, known) for part in parted([optimizer.state[p] for p in held], [betas[id(p)] for p in held])
    )
    ratio = torch.where(noise > 0, signal / noise, torch.zeros_like(noise)).clamp_min(0)
    return Scores(dict(zip(known, ratio, strict=True)))


def parted(states: Sequence[Mapping[str, Any]], betas: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Return the squared mean and the variance of each parameter's gradient, summed over its elements."""
    mean = row(torch._foreach_norm([local(state["exp_avg"]) for state in states])).square()
    square = row(torch._foreach_norm([local(state["exp_avg_sq"]) for state in states], 1))
    steps = row([torch.as_tensor(state["step"]) for state in states]).to(mean.device, non_blocking=True)
    first, second = torch.tensor(betas, dtype=torch.float64).to(mean.device, non_blocking=True).T
    faded = first**steps
    mean, square = mean / (1 - faded).square(), square / (1 - second**steps)
    averaged = (1 - first) * (1 + faded) / ((1 + first) * (1 - faded))
    # After one step the two moments say the same, and averaged is 1.
    told = torch.where(steps > 1, 1 / (1 - averaged), torch.zeros_like(steps))
    return (mean - averaged * square) * told, (square - mean) * told


def no_moments(optimizer: Optimizer) -> ConfigError:
    """Return what is said of an optimizer that keeps other moments, or none."""
    return ConfigError(
        f'signal="gradient_snr" with {type(optimizer).__name__}',
        why="it is read from the two moments that Adam keeps",
        todo="train with AdamW, or choose another signal",
        code="ESP-2137",
    )
