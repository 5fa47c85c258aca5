"""The laws where the model trains on an accelerator: ``make test-gpu`` runs them and writes down what came of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esper.kasmina import topology, wrap
from esper.testing.controllers import GraftAt
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.any_order import PRECISIONS, Setup, run
from tests.laws.support import EVERY_HOST, same
from tests.laws.test_law_5_resumable import story, through_a_file
from tests.laws.training import COMBINATIONS, STEPS, Training, on, reseed

pytestmark = pytest.mark.gpu
CONTROLLED: dict[str, Any] = {"controller": GraftAt(2, 4, 7), "late": "wait"}


def trained(model: nn.Module, host: ZooHost, device: str) -> dict[str, torch.Tensor]:
    """Train for a few steps and return the state."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    for step in range(4):
        loss = host.loss(model, on(device, host.batch(seed=step)))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return model.state_dict()


@EVERY_HOST
def test_law_1_a_wrapped_host_trains_to_the_bit_as_before(host: ZooHost, device: str) -> None:
    wrapped = wrap(host.model().to(device), host.slots, example=on(device, host.batch()).x)
    assert same(trained(wrapped, host, device), trained(host.model().to(device), host, device))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("combination", [("sgd", "cosine"), ("adamw", "lambda")], ids="-".join)
@EVERY_HOST
def test_the_laws_hold_in_any_order(host: ZooHost, combination: tuple[str, str], precision: str, device: str) -> None:
    run(Setup(host.name, combination, precision, False, device=device), examples=2, steps=10)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer"])
def test_the_laws_hold_in_any_order_where_the_model_is_compiled(name: str, precision: str, device: str) -> None:
    backend = "inductor" if device.startswith("cuda") else "aot_eager"
    torch._dynamo.reset()
    run(Setup(name, ("adamw", "lambda"), precision, True, backend, device), examples=2, steps=6)


@pytest.mark.parametrize("save_at", [3, 11, 20])
@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_law_5_a_run_goes_on_from_a_state_that_was_read_to_the_cpu(
    name: str, save_at: int, root: Path, device: str
) -> None:
    whole = Training(ZOO[name], COMBINATIONS[3], device=device)
    with whole.attach(root, **CONTROLLED) as growth:
        reseed(2)
        losses, wanted, told = whole.train(STEPS, growth), whole.picture(), story(growth)
    assert sum(kind == "grafted" for _, kind, _, _ in told) >= 2
    first = Training(ZOO[name], COMBINATIONS[3], device=device)
    with first.attach(root, **CONTROLLED) as growth:
        reseed(2)
        assert first.train(save_at, growth) == losses[:save_at]
        saved = moved(through_a_file(growth.state_dict()), "cpu")
    reseed(77)
    second = Training(ZOO[name], COMBINATIONS[3], seed=1, device=device)
    with second.attach(root, **CONTROLLED) as growth:
        growth.load_state_dict(saved)
        assert second.train(STEPS - save_at, growth) == losses[save_at:]
        assert not second.picture().differences(wanted)
        assert story(growth) == told


def test_law_4_a_run_that_rolls_back_equals_the_one_that_never_grew(root: Path, device: str) -> None:
    plain = Training(ZOO["resnet"], COMBINATIONS[2], device=device)
    reseed(4)
    plain.train(6)
    wanted = plain.train(5)
    training = Training(ZOO["resnet"], COMBINATIONS[2], device=device)
    with training.attach(root) as growth:
        reseed(4)
        training.train(6, growth)
        before = growth.digest()
        event = growth.graft(training.slots[-1], "gated_conv")
        training.train(5, growth)
        growth.rollback(event)
        assert growth.digest() == before
        assert not topology(training.model)
        assert training.train(5, growth) == wanted


def moved(value: Any, device: str) -> Any:
    """Return a state with every tensor on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return [moved(item, device) for item in value] if isinstance(value, list) else value
