"""The normalised gradient norm, against NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from esper.kasmina import placement_of, signal_named
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, wrapped


@EVERY_HOST
def test_it_is_the_norm_of_the_gradient_over_that_of_the_weights(host: ZooHost) -> None:
    model = wrapped(host)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    signal = signal_named("gradient_norm", model, optimizer)
    wanted = {}
    signal.arm()
    host.loss(model, host.batch()).backward()
    for name, place in placement_of(model).slots.items():
        held = [p for p in place.module.parameters() if p.grad is not None]
        gradient, weight = (
            np.sqrt(sum(np.square(t.detach().double().numpy()).sum() for t in tensors))
            for tensors in ([p.grad for p in held], held)
        )
        wanted[name] = gradient / weight
    optimizer.step()
    signal.disarm()
    assert signal.read() == pytest.approx(wanted, rel=1e-5)


def test_it_does_not_move_with_the_scale_of_weights_that_a_norm_follows() -> None:
    scores = []
    for scale in (1.0, 2.0):
        model = wrapped(ZOO["mlp"])
        with torch.no_grad():
            model.fc1.weight.mul_(scale)
            model.fc1.bias.mul_(scale)
        parameters = {"fc1": [model.fc1.weight, model.fc1.bias]}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        signal = signal_named("gradient_norm", model, optimizer)
        signal.arm()
        x = ZOO["mlp"].batch().x
        nn.functional.normalize(model.fc1(x)).square().mul(torch.arange(model.fc1.out_features)).sum().backward()
        optimizer.step()
        signal.disarm()
        # The gradient falls with the scale, and the weights rise with it.
        scores.append(signal.read()["fc1"] * scale**2)
        assert parameters["fc1"][0].grad is not None
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
