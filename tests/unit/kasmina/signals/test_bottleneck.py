"""The bottleneck, against values worked out by hand, and against one that was planted."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from esper.ir import Layout
from esper.kasmina import Slot, placement_of, wrap
from esper.kasmina.signals.activity import ROWS, ActivitySignal
from esper.kasmina.signals.bottleneck import bottleneck
from esper.kasmina.signals.least_squares import RIDGE
from esper.testing.zoo import ZOO
from tests.laws.support import wrapped


def probed(
    x: Tensor, gradient: Tensor, module: nn.Module | None = None, layout: Layout | None = None
) -> tuple[float, int]:
    """Return the score of a slot whose output gets a gradient, and the FLOPs that it took."""
    model = nn.Sequential(module or nn.Linear(4, gradient.shape[-1]), nn.Identity())
    wrap(model, Slot("0", layout=layout), example=x)
    probe = ActivitySignal(model, ["0"], bottleneck)
    probe.arm()
    model(x).backward(gradient)
    probe.disarm()
    assert not model[0]._forward_hooks
    return probe.read()["0"], probe.flops


def test_a_wish_that_the_layer_can_fulfil_scores_nothing_and_one_that_it_cannot_scores_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator)
    linear = x @ torch.randn(4, 3, generator=generator) + 1.0
    assert probed(x, linear)[0] < 1e-4
    noise = torch.randn(400, 3, generator=generator)
    features = torch.cat([x, torch.ones(400, 1)], 1)
    noise = noise - features @ torch.linalg.lstsq(features, noise).solution
    assert probed(x, noise)[0] == pytest.approx(1.0, abs=1e-6)
    assert probed(x, linear / linear.norm() + noise / noise.norm())[0] == pytest.approx(0.5, abs=2e-3)


def test_the_score_is_the_ridge_regression_written_out() -> None:
    generator = torch.Generator().manual_seed(1)
    x, gradient = torch.randn(40, 4, generator=generator), torch.randn(40, 3, generator=generator)
    features = torch.cat([x, torch.ones(40, 1)], 1).double()
    gram = features.T @ features
    gram += RIDGE * gram.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    left = gradient.double() - features @ torch.linalg.inv(gram) @ features.T @ gradient.double()
    score, flops = probed(x, gradient)
    assert score == pytest.approx(float(left.square().sum() / gradient.double().square().sum()), rel=1e-9)
    assert flops == 2 * 40 * 25 + 4 * 40 * 5 * 3 + 2 * 125 // 3 + 2 * 25 * 3


@pytest.mark.parametrize(
    ("module", "shape", "layout"),
    [
        (nn.Conv1d(4, 3, 1), (50, 4, 8), None),
        (nn.Conv2d(4, 3, 1), (10, 4, 5, 8), None),
        (nn.Linear(4, 3), (50, 8, 4), None),
        (nn.Linear(4, 3), (10, 5, 8, 4), None),
    ],
    ids=["channels_1d", "channels_2d", "tokens", "features"],
)
def test_every_layout_regresses_on_the_slots_own_input(
    module: nn.Module, shape: tuple[int, ...], layout: Layout | None
) -> None:
    """The gradient is a linear map of the input at each position, plus noise that the input does not tell of."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator)
    first = not isinstance(module, nn.Linear)
    rows = x.movedim(1, -1) if first else x
    gradient = rows @ torch.randn(4, 3, generator=generator)
    assert probed(x, gradient.movedim(-1, 1) if first else gradient, module, layout)[0] < 1e-4


def test_where_positions_differ_the_output_stands_in_for_the_input() -> None:
    class Halving(nn.Module):
        """Shortens the sequence and keeps its width, so that only the positions tell input and output apart."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)[:, ::2]

    torch.manual_seed(0)
    module, x = Halving(), torch.randn(30, 8, 4)
    gradient = module(x).detach() @ torch.randn(4, 4)
    assert probed(x, gradient, module)[0] < 1e-4


def test_long_inputs_are_thinned_evenly() -> None:
    x = torch.randn(2 * ROWS - 1, 4)
    _, flops = probed(x, torch.randn(2 * ROWS - 1, 3))
    assert flops == 2 * ROWS * 25 + 4 * ROWS * 5 * 3 + 2 * 125 // 3 + 2 * 25 * 3


def test_scores_are_shares_of_the_whole_gradient_energy() -> None:
    host = ZOO["residual_mlp"]
    model = wrapped(host)
    probe = ActivitySignal(model, tuple(placement_of(model).slots), bottleneck)
    probe.arm()
    host.loss(model, host.batch()).backward()
    probe.disarm()
    scores = probe.read()
    assert scores.keys() == placement_of(model).slots.keys()
    assert all(0.0 <= score <= 1.0 for score in scores.values())
    assert sum(scores.values()) <= 1.0


def test_passes_without_gradient_and_values_that_overflow_score_nothing() -> None:
    host = ZOO["mlp"]
    model = wrapped(host)
    probe = ActivitySignal(model, ["fc1"], bottleneck)
    probe.arm()
    with torch.no_grad():
        model(host.batch().x)
    assert probe.read() == {}
    model(host.batch().x * float("inf")).sum().backward()
    probe.disarm()
    assert probe.read() == {"fc1": 0.0}


@pytest.mark.parametrize("narrow", [1, 2, 3])
def test_a_bottleneck_planted_in_a_linear_network_is_found_where_the_network_gets_narrow(narrow: int) -> None:
    """From there on layers read two numbers, and cannot learn the map of twelve that is asked for; those before could."""
    torch.manual_seed(narrow)
    widths = [12] * 6
    widths[narrow] = 2
    # Orthogonal, as the ridge leaves more of a wish where features are of very different strength.
    model = nn.Sequential(*(nn.Linear(*pair, bias=False) for pair in pairwise(widths)))
    for weight in model.parameters():
        nn.init.orthogonal_(weight)
    x = torch.randn(600, 12)
    wrap(model, [str(index) for index in range(5)], example=x)
    signal = ActivitySignal(model, tuple(placement_of(model).slots), bottleneck)
    signal.arm()
    (model(x) - x @ torch.randn(12, 12)).square().mean().backward()
    signal.disarm()
    scores = signal.read()
    assert [slot for slot in scores if scores[slot] > 0.01] == [str(index) for index in range(narrow, 5)]
    assert all(scores[str(index)] < 1e-4 for index in range(narrow))
