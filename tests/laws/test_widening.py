"""A graft that reads what enters a module keeps the laws: isolated, reversible, resumable, compiled once."""

from pathlib import Path

import pytest
import torch

from esper.contracts.adaptation import Action, AdaptationDecision
from esper.kasmina import SeedState, placement_of, topology
from esper.services.tolaria.incubator import Incubator
from esper.services.tolaria.kernels import ReadyKernel
from esper.services.tolaria.snapshot import digest
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.zoo import ZOO
from tests.laws.compiled import Counting, by_slots, compiled, nothing_compiled
from tests.laws.support import graft, kernel_for
from tests.laws.training import COMBINATIONS, Training, reseed

__all__ = ["nothing_compiled"]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
HOST, SLOT, WIDER = ZOO["mlp"], "fc1", "wider_mlp"


def started() -> Training:
    training = Training(HOST, COMBINATIONS[0])
    reseed(4)
    training.train(3)
    return training


def test_what_learns_apart_from_the_input_leaves_the_host_alone_and_gets_its_own_gradient() -> None:
    twin = started()
    wanted = twin.train(4), twin.picture()
    training = started()
    data, kernel_id = kernel_for(training.model, SLOT, WIDER)
    incubator = Incubator.beside(training.model, training.optimizer, ())
    decision = AdaptationDecision(
        action=Action.LOAD_KERNEL, target_layer=SLOT, blueprint=WIDER, kernel_id=kernel_id, strategy="manual"
    )
    apprentice = incubator.take_in(decision, ReadyKernel(kernel_id, WIDER, data, 0.0), steps=4)
    before = [parameter.detach().clone() for parameter in apprentice.kernel.parameters()]
    losses = []
    for _ in range(4):
        losses += training.train(1)
        assert not incubator.step(look=True)
    assert losses == wanted[0]
    after = list(apprentice.kernel.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    incubator.release(apprentice)
    assert not training.picture().differences(wanted[1])


def test_a_rollback_takes_it_out_to_the_bit() -> None:
    training = started()
    surgeon = Surgeon(training.subject, snapshots_held=2, tolerance=1e-6)
    before = digest(training.subject)
    data, kernel_id = kernel_for(training.model, SLOT, WIDER)
    surgeon.graft(Cut(SLOT, 0), data, kernel_id=kernel_id, key="join", seen=None, blueprint=WIDER)
    training.train(3)
    assert digest(training.subject) != before
    assert surgeon.roll_back("join")
    assert digest(training.subject) == before
    assert not topology(training.model)


def test_a_run_saved_in_mid_blend_goes_on_as_the_unbroken_one(root: Path) -> None:
    first = Training(HOST, COMBINATIONS[0])
    with first.attach(root) as growth:
        reseed(9)
        first.train(5, growth)
        growth.graft(SLOT, WIDER)
        first.train(2, growth)
        assert placement_of(first.model).seeds[SLOT, 0].state is SeedState.BLENDING
        saved = growth.state_dict()
        losses, wanted = first.train(6, growth), first.picture()
    second = Training(HOST, COMBINATIONS[0], seed=1)
    with second.attach(root) as growth:
        growth.load_state_dict(saved)
        assert second.train(6, growth) == losses
        assert not second.picture().differences(wanted)


def test_it_recompiles_its_region_once() -> None:
    model, backend = compiled(HOST, by_slots)
    batch = HOST.batch()

    def compiles() -> int:
        before = backend.count
        HOST.loss(model, batch).backward()
        return backend.count - before

    assert isinstance(backend, Counting)
    assert compiles() > 0
    graft(model, SLOT, WIDER)
    assert compiles() == 1
    assert compiles() == 0
