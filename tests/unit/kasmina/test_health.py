"""Health is read when the gradients of the step are there, however the optimizer is stepped."""

import torch
from torch import Tensor, nn

import esper
from esper.kasmina import HealthMeter


def model() -> nn.Module:
    torch.manual_seed(0)
    return esper.wrap(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)),
        example=torch.zeros(2, 3),
    )


def test_a_step_with_a_closure_is_measured_on_the_gradients_that_the_closure_computes() -> None:
    measured = []
    for with_closure in (False, True):
        net, batches = model(), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        meter = HealthMeter(net, optimizer)

        def closure(x: Tensor = batches[1], net: nn.Module = net, optimizer: torch.optim.SGD = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = net(x).square().mean()
            loss.backward()
            return loss.detach()

        net(batches[0]).square().mean().backward()  # gradients of another batch are still there
        meter.arm()
        if with_closure:
            returned = optimizer.step(closure)
            assert isinstance(returned, Tensor)
        else:
            closure()
            optimizer.step()
        measured.append([signal.metrics for signal in meter.read(run_id="run", step=1)])
        assert not meter.read(run_id="run", step=2)
    assert measured[0]
    assert measured[0] == measured[1]
