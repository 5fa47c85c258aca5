"""The laws where inductor makes the code: within the stated tolerance of the eager run, resumed and isolated to the bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.kasmina import compile_regions
from esper.testing.zoo import ZOO
from tests.laws.compiled import nothing_compiled
from tests.laws.support import graft, same
from tests.laws.test_law_3_isolated import FAULTS, Planted, take_in, train
from tests.laws.test_law_5_resumable import story, through_a_file
from tests.laws.training import EVERY, Training, equal, reseed, stock

__all__ = ["nothing_compiled"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # inductor's own, which depend on the machine
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
    pytest.mark.skipif(" " in torch.__path__[0], reason="inductor cannot link libraries whose path has a space"),
]
TOLERANCE = 1e-5
PLAIN = ("sgd", "lambda")
HOST = ZOO["residual_mlp"]
"""Convolutions take minutes to compile on a small machine."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock(tmp_path_factory.mktemp("stocked"))


def made(*, compiled: bool, seed: int = 0) -> Training:
    training = Training(HOST, PLAIN, seed=seed)
    if compiled:
        compile_regions(training.model)
    return training


def test_a_graft_is_neutral_and_a_grown_run_follows_the_eager_one(library: Path) -> None:
    ends: list[Any] = []
    for compiled in (False, True):
        training = made(compiled=compiled)
        reseed(1)
        with training.attach(library) as growth:
            losses = training.train(EVERY + 1, growth)
            x = HOST.batch(seed=7).x
            with torch.no_grad():
                training.model.eval()
                before = training.model(x)
                growth.graft(training.slots[0], "mlp_adapter")
                assert float((training.model(x) - before).abs().max()) <= TOLERANCE
            losses += training.train(EVERY, growth)
            ends.append((losses, training.model.state_dict(), training.model.eval()(x).detach()))
    (eager, tensors, logits), (compiled_losses, compiled_tensors, compiled_logits) = ends
    assert compiled_losses == pytest.approx(eager, abs=10 * TOLERANCE)
    for name, tensor in tensors.items():
        torch.testing.assert_close(compiled_tensors[name], tensor, rtol=1e-4, atol=10 * TOLERANCE, msg=name)
    assert float((logits - compiled_logits).detach().abs().max()) <= 10 * TOLERANCE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_run_resumes_and_rolls_back_to_the_bit(library: Path) -> None:
    first = made(compiled=True)
    reseed(1)
    with first.attach(library) as growth:
        first.train(EVERY + 1, growth)
        before = first.picture()
        event = growth.graft(first.slots[0], "mlp_adapter")
        first.train(2, growth)
        saved = through_a_file(growth.state_dict())
        losses, wanted, told = first.train(EVERY, growth), first.picture(), story(growth)
        growth.rollback(event)
        assert not first.picture().differences(before)
    second = made(compiled=True, seed=1)
    with second.attach(library) as growth:
        growth.load_state_dict(saved)
        assert second.train(EVERY, growth) == losses
        assert not second.picture().differences(wanted)
        assert story(growth) == told


@pytest.mark.parametrize("fault", ["sound", "nan"])
def test_a_compiled_host_trains_to_the_bit_as_if_nothing_learned_beside_it(fault: str) -> None:
    found: list[Any] = []
    for apart in (False, True):
        training = made(compiled=True)
        reseed(3)
        training.train(2)
        incubator = None
        if apart:
            incubator, apprentice = take_in(training, steps=4)
            apprentice.incubation.kernel = Planted(apprentice.incubation.kernel, FAULTS[fault][0])
        losses, reasons = train(training, 4, incubator)
        assert bool(reasons) == (apart and fault == "nan")
        found.append((losses, training.picture()))
    assert found[0][0] == found[1][0]
    assert not found[0][1].differences(found[1][1], without=("classes",))


def test_a_planted_difference_is_seen(library: Path) -> None:
    """The control: a host that is not the same is found out."""
    first, second = made(compiled=True), made(compiled=True)
    for training in (first, second):
        reseed(3)
        training.train(1)
    assert same(dict(first.model.state_dict()), dict(second.model.state_dict()))
    graft(second.model, second.slots[0], "mlp_adapter")
    second.train(1)
    first.train(1)
    second.train(1)
    assert not equal(first.train(1), second.train(1))
