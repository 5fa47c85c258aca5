"""The gradient's signal-to-noise ratio, against moments that were made of known gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from esper.errors import ConfigError
from esper.kasmina import signal_named, wrap
from esper.kasmina.signals.gradient_snr import gradient_snr

SIZE = 4000


def after(gradients: list[torch.Tensor], kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> float:
    """Return the ratio of a parameter that had these gradients; it does not move."""
    parameter = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = kind([parameter], lr=0.0)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return gradient_snr({"slot": [parameter]}, optimizer).read()["slot"]


def drawn(mean: float, deviation: float, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(SIZE, generator=generator).sign()
    return [mean * signs + deviation * torch.randn(SIZE, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("steps", [2, 5, 60])
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_it_estimates_the_known_ratio_without_bias_after_any_number_of_steps(ratio: float, steps: int) -> None:
    """The error of its mean over 4000 parameters is below 5 % at two steps, and smaller later."""
    assert after(drawn(ratio**0.5, 1.0, steps)) == pytest.approx(ratio, rel=0.2)


def test_pure_noise_has_next_to_no_signal() -> None:
    assert after(drawn(0.0, 1.0, 60)) < 0.01


def test_it_is_the_formula_written_out() -> None:
    steps, gradients = 7, drawn(0.5, 1.0, 7)
    weights = [
        np.array([(1 - beta) * beta ** (steps - 1 - i) / (1 - beta**steps) for i in range(steps)])
        for beta in (0.9, 0.999)
    ]
    table = np.stack([gradient.double().numpy() for gradient in gradients])
    first, second = np.square(weights[0] @ table).sum(), (weights[1] @ np.square(table)).sum()
    averaged = np.square(weights[0]).sum()
    assert after(gradients) == pytest.approx((first - averaged * second) / (second - first), rel=1e-5)


def test_after_one_step_nothing_is_known() -> None:
    assert after(drawn(1.0, 0.1, 1)) == 0.0


def test_other_optimizers_are_refused() -> None:
    gradients = drawn(1.0, 1.0, 2)
    for kind in (torch.optim.Adamax, torch.optim.RMSprop):
        with pytest.raises(ConfigError, match="ESP-2137"):
            after(gradients, kind)


def test_a_slot_is_scored_from_its_own_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    x = torch.randn(16, 4)
    wrap(model, ["0", "1"], example=x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    signal = signal_named("gradient_snr", model, optimizer)
    for number in range(20):
        if number == 19:
            signal.arm()
        optimizer.zero_grad()
        (model[1](model[0](x)).mean() + 1e-3 * torch.randn(()) * model[0].weight.sum()).backward()
        optimizer.step()
    signal.disarm()
    scores = signal.read()
    # The gradient of the last layer is the same at every step; that of the first is noisy.
    assert scores["1"] > 100 * scores["0"] > 0
