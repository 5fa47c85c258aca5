"""Health and bottlenecks, against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from esper.ir import Layout
from esper.kasmina import BottleneckProbe, HealthMeter, Slot, placement_of, wrap
from esper.kasmina.signals.bottleneck import RIDGE, ROWS
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, wrapped


def step(model: nn.Module, host: ZooHost, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    host.loss(model, host.batch()).backward()
    optimizer.step()


@EVERY_HOST
def test_health_is_the_norm_of_gradients_and_weights_before_the_step(host: ZooHost) -> None:
    model = wrapped(host)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = HealthMeter(model, optimizer)
    step(model, host, optimizer)
    assert meter.read(run_id="run", step=1) == []
    weights = {
        n: [p.detach().clone() for p in place.module.parameters()] for n, place in placement_of(model).slots.items()
    }
    meter.arm()
    step(model, host, optimizer)
    signals = meter.read(run_id="run", step=2)
    assert [signal.layer_id for signal in signals] == list(placement_of(model).slots)
    for signal in signals:
        gradients = [p.grad for p in placement_of(model).place(signal.layer_id).module.parameters()]
        wanted = math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))
        held = math.sqrt(sum(float(w.square().sum()) for w in weights[signal.layer_id]))
        assert signal.metrics["grad_norm"] == pytest.approx(wanted, rel=1e-5)
        assert signal.metrics["weight_norm"] == pytest.approx(held, rel=1e-5)
        assert signal.metrics["grad_to_weight"] == pytest.approx(wanted / held, rel=1e-5)
        assert (signal.run_id, signal.step, signal.nonfinite) == ("run", 2, ())
    step(model, host, optimizer)
    assert meter.read(run_id="run", step=3) == []


def test_what_is_not_finite_travels_as_a_name() -> None:
    host = ZOO["mlp"]
    model = wrapped(host)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = HealthMeter(model, optimizer)
    meter.arm()
    host.loss(model, host.batch()).backward()
    model.fc1.weight.grad.fill_(float("nan"))
    optimizer.step()
    first = meter.read(run_id="run", step=1)[0]
    assert first.layer_id == "fc1"
    assert first.nonfinite == ("grad_norm", "grad_to_weight")
    assert first.metrics.keys() == {"weight_norm"}


def test_sparse_gradients_and_mixed_types_are_measured_too() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.fc = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 4, dtype=torch.bfloat16)

        def forward(self, ids: Tensor) -> Tensor:
            return self.fc(self.embedding(ids).bfloat16())

    model = nn.Sequential(Sparse(), nn.Linear(4, 2, dtype=torch.bfloat16))
    ids = torch.tensor([[1, 1, 2]])
    wrap(model, "0", example=ids)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = HealthMeter(model, optimizer)
    meter.arm()
    model(ids).float().square().sum().backward()
    gradient = model[0].embedding.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    dense = [gradient.to_dense(), *(p.grad for p in model[0].fc.parameters() if p.grad is not None)]
    wanted = math.sqrt(sum(float(g.float().square().sum()) for g in dense))
    optimizer.step()
    assert meter.read(run_id="run", step=1)[0].metrics["grad_norm"] == pytest.approx(wanted, rel=1e-2)


def test_a_closed_meter_measures_nothing() -> None:
    host = ZOO["mlp"]
    model = wrapped(host)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    meter = HealthMeter(model, optimizer)
    meter.arm()
    meter.close()
    step(model, host, optimizer)
    assert meter.read(run_id="run", step=1) == []


# -- bottlenecks -----------------------------------------------------------------------------------------------------------


class Wish(nn.Module):
    """A linear slot whose gradient is whatever is asked for."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(4, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.fc(x))


def probed(
    x: Tensor, gradient: Tensor, module: nn.Module | None = None, layout: Layout | None = None
) -> tuple[float, int]:
    """Return the score of a slot whose output gets a gradient, and the FLOPs that it took."""
    model = nn.Sequential(module or nn.Linear(4, gradient.shape[-1]), nn.Identity())
    wrap(model, Slot("0", layout=layout), example=x)
    probe = BottleneckProbe(model, ["0"])
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
    probe = BottleneckProbe(model, tuple(placement_of(model).slots))
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
    probe = BottleneckProbe(model, ["fc1"])
    probe.arm()
    with torch.no_grad():
        model(host.batch().x)
    assert probe.read() == {}
    model(host.batch().x * float("inf")).sum().backward()
    probe.disarm()
    assert probe.read() == {"fc1": 0.0}
