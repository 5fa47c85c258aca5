"""Law 2, measured on the stored weights: neutral at birth, and alive in every part by step 2."""

import numpy as np
import torch
from torch import Tensor

from esper.blueprints.module import KernelModule
from esper.ir import liveness
from esper.ir.liveness import STEPS
from esper.services.tezzeret.gates.trial import Trial, largest
from esper.services.tezzeret.gates.verdict import Findings
from esper.services.tezzeret.probes import Probe

_SHIFT = 0.5


def check_birth_measured(trial: Trial, found: Findings) -> None:
    """Look whether F is exactly zero, and which parameters get a gradient."""
    newborn = trial.newborn()
    _expect_neutral(trial, newborn, found)
    _expect_alive(trial, newborn, found)


def _expect_neutral(trial: Trial, newborn: KernelModule, found: Findings) -> None:
    for scale in (0.0, *trial.config.zero_scales):
        for training in (False, True):
            with torch.no_grad():
                size = largest(newborn.train(training)(trial.input(trial.probes.odd, scale=scale)))
            found.expect(size == 0.0, f"not neutral at birth: |F(x)| reaches {size:.3g} at input scale {scale:g}")


def _expect_alive(trial: Trial, newborn: KernelModule, found: Findings) -> None:
    """Train for three steps in which every tensor that has a gradient moves equally far."""
    zero_factors = liveness(trial.ir).zero_factors
    names = [name for name, _ in newborn.named_parameters()]
    peaks = dict.fromkeys(names, 0.0)
    newborn.train()
    for step in range(STEPS):
        sizes = _gradients(trial, newborn, step)
        if step == 0:
            for name in sorted(zero_factors):
                found.expect(sizes[name] > 0.0, f"zero factor {name!r} has no gradient at step 0")
        top = max(sizes.values(), default=0.0)
        peaks = {name: max(peaks[name], sizes[name] / top if top else 0.0) for name in names}
        _move(newborn, trial.config.live_step)
    for name, share in peaks.items():
        found.expect(
            share >= trial.config.live_share,
            f"parameter {name!r} is dead: by step {STEPS - 1} its gradient is {share:.1g} of the layer's largest",
        )
    found.measure("least_live_share", min(peaks.values(), default=0.0))


def _gradients(trial: Trial, newborn: KernelModule, step: int) -> dict[str, float]:
    """Return the largest gradient of each parameter for y = h + F(x) against a shuffled h, shifted.

    Without the shift the errors would add up to nothing, and a last bias, whose gradient is their sum, would make no measure.
    """
    newborn.zero_grad()
    x = _varied_input(trial, step)
    h = trial.leaving(x)
    missed = (h + newborn(x) - h.roll(1, 0) + _SHIFT).float()
    (missed.square().sum() * 0.5).backward()
    return {
        name: 0.0 if parameter.grad is None else largest(parameter.grad)
        for name, parameter in newborn.named_parameters()
    }


def _varied_input(trial: Trial, salt: int) -> Tensor:
    """Return examples of scales from 1/4 to 4, so that a bias cannot hold a relu shut for all of them."""
    small = trial.probes.batch
    batch = max(small.batch, trial.config.live_rows * small.batch // small.rows)
    x = trial.input(Probe(batch, small.extent), salt=salt)
    scales = torch.from_numpy(np.geomspace(0.25, 4.0, batch)).to(x.dtype)
    return x * scales.reshape(-1, *(1,) * (x.dim() - 1))


def _move(newborn: KernelModule, step: float) -> None:
    with torch.no_grad():
        for parameter in newborn.parameters():
            if parameter.grad is not None and (size := largest(parameter.grad)) > 0.0:
                parameter.sub_(parameter.grad * (step / size))
