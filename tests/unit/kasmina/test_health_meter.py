"""Health, against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina import HealthMeter, placement_of, wrap
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
