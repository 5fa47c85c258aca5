"""Slots after a rollback, in a second run on the same model, in a copy of a model that grows, and after a reload in place."""

import copy
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from esper.contracts.adaptation import AdaptationDecision, SystemStatePacket
from esper.errors import ConfigError
from esper.kasmina import SeedState, placement_of, topology
from esper.services.tolaria.events import EventKind
from esper.testing.controllers import Silent
from esper.testing.zoo import ZOO
from tests.laws.training import COMBINATIONS, EVERY, Training, reseed, stock


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock(tmp_path_factory.mktemp("runs"))


def fresh() -> Training:
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    reseed(3)
    return training


def state_of(model: nn.Module, slot: str) -> SeedState:
    return placement_of(model).seeds[slot, 0].state


def test_a_rollback_that_brings_a_culled_graft_back_brings_its_trial_back_too(root: Path) -> None:
    training = fresh()
    older, newer = training.slots[:2]
    batch, harm = training.host.batch(seed=10**6), 0.0

    def validate(model: nn.Module) -> Tensor:
        added = harm if any(entry.slot == older for entry in topology(model)) else 0.0
        return F.cross_entropy(model(batch.x), batch.target, reduction="none") + added

    with training.attach(root, validate=validate) as growth:
        training.train(5 * EVERY, growth)
        growth.graft(older, "gated_conv")
        training.train(EVERY, growth)
        event = growth.graft(newer, "gated_conv")
        harm = 50.0
        training.train(2 * EVERY, growth)
        assert [(e.kind, e.slot) for e in growth.events][-1] == (EventKind.CULLED, older)
        growth.rollback(event)
        harm = 0.0
        assert [entry.slot for entry in topology(training.model)] == [older]
        assert state_of(training.model, older) is SeedState.HOLDING
        training.train(6 * EVERY, growth)
        assert state_of(training.model, older) is SeedState.FOSSILIZED


def test_a_slot_that_rested_at_the_end_of_a_run_is_free_in_the_next(root: Path) -> None:
    training = fresh()
    slot = training.slots[0]
    with training.attach(root) as growth:
        training.train(EVERY, growth)
        growth.rollback(growth.graft(slot, "gated_conv", incubate=50))
        assert state_of(training.model, slot) is SeedState.EMBARGOED
    with training.attach(root) as growth:
        growth.graft(slot, "gated_conv")


def test_in_a_copy_of_a_model_that_grows_every_slot_that_has_no_graft_is_free(root: Path) -> None:
    training = fresh()
    learning, joined = training.slots[:2]
    with training.attach(root) as growth:
        training.train(EVERY, growth)
        growth.graft(learning, "gated_conv", incubate=50)
        growth.graft(joined, "gated_conv")
        training.train(2, growth)
        other = fresh()
        other.model = copy.deepcopy(training.model)
        other.optimizer = torch.optim.SGD(other.model.parameters(), lr=0.01)
        other.schedule = LambdaLR(other.optimizer, lambda _: 1.0)
        with other.attach(root) as second:
            second.graft(learning, "gated_conv")
            other.train(EVERY, second)
        assert len(topology(other.model)) == 2
        assert state_of(training.model, learning) is SeedState.TRAINING
        training.train(2, growth)


class Listening(Silent):
    """Notes the scores that it is shown, by step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        self.seen.append((packet.step, {c.slot: c.score for c in packet.candidates}))
        return super().decide(packet)

    def last(self, count: int) -> tuple[int, dict[str, float]]:
        limit = time.monotonic() + 10
        while len(self.seen) < count and time.monotonic() < limit:
            time.sleep(0.01)
        return self.seen[-1]


def test_a_reload_in_place_measures_at_the_steps_at_which_the_unbroken_run_does(root: Path) -> None:
    training, controller = fresh(), Listening()
    with training.attach(root, controller=controller, late="wait") as growth:
        training.train(2 * EVERY + 1, growth)
        state = growth.state_dict()
        known = len(controller.seen)
        training.train(EVERY - 1, growth)
        unbroken = controller.last(known + 1)
        growth.load_state_dict(state)
        training.train(EVERY - 2, growth)
        growth.load_state_dict(state)  # when the next step was to be measured
        training.train(EVERY - 1, growth)
        assert controller.last(known + 2) == unbroken


def test_two_models_are_attached_side_by_side_but_not_with_one_optimizer(root: Path) -> None:
    first, second, third = fresh(), fresh(), fresh()
    shared = torch.optim.SGD([*first.model.parameters(), *third.model.parameters()], lr=0.01)
    first.optimizer = third.optimizer = shared
    first.schedule = third.schedule = LambdaLR(shared, lambda _: 1.0)
    with first.attach(root) as one, second.attach(root) as two:
        with pytest.raises(ConfigError, match="ESP-2102: this optimizer trains another model"):
            third.attach(root)
        event = one.graft(first.slots[0], "gated_conv")
        two.graft(second.slots[1], "gated_conv")
        before = second.picture()
        first.train(2, one)
        one.rollback(event)
        assert [entry.slot for entry in topology(second.model)] == [second.slots[1]]
        assert not second.picture().differences(before, without=("rng",))
    with third.attach(root):
        pass
