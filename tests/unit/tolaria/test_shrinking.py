"""What brings less than it costs leaves, one graft at a time; what earns its rent stays, to the bit."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
from esper.errors import ConfigError
from esper.kasmina import SeedState, placement_of, topology
from esper.kasmina.grafted import grafts_of
from esper.services.tolaria.budget import count_params
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.growth import Growth
from esper.testing.zoo import ZOO
from tests.laws.training import COMBINATIONS, EVERY, Training, reseed, stock

FREE = esper.Rent(params=0.0, flops=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock(tmp_path_factory.mktemp("runs"))


def grown(root: Path) -> tuple[Training, Growth]:
    """A training with two grafts that were kept, none of which does anything yet."""
    reseed(3)
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    growth = training.attach(root)
    for slot in training.slots[:2]:
        growth.graft(slot, "gated_conv")
    for _ in range(12):
        training.train(EVERY, growth)
    assert [state_of(training.model, slot) for slot in training.slots[:2]] == [SeedState.FOSSILIZED] * 2
    return training, growth


def state_of(model: nn.Module, slot: str) -> SeedState:
    return placement_of(model).seeds[slot, 0].state


@torch.no_grad()
def silence(training: Training, slot: str) -> None:
    """Let a graft add nothing."""
    for parameter in grafts_of(placement_of(training.model).slots[slot].module).parameters():
        parameter.zero_()


def needing(training: Training, growth: Growth, *slots: str) -> None:
    """Let the held-out loss be higher by 0.3 for each of some slots that has no graft."""
    batch = training.host.batch(seed=10**6)

    def validate(model: nn.Module) -> Tensor:
        present = {entry.slot for entry in topology(model) if entry.active}
        return F.cross_entropy(model(batch.x), batch.target, reduction="none") + 0.3 * len(set(slots) - present)

    growth._engine.observer.held_out._validate = validate


def slots_grown(training: Training) -> list[str]:
    return [entry.slot for entry in topology(training.model)]


def test_a_graft_that_adds_nothing_leaves_and_the_other_stays(root: Path) -> None:
    training, growth = grown(root)
    idle, useful = training.slots[:2]
    silence(training, idle)
    needing(training, growth, useful)
    x = training.host.batch(seed=5).x
    training.model.eval()
    before, host_params = training.model(x), count_params(training.model).host
    with growth:
        (event,) = growth.shrink(esper.Rent(params=1e-6, flops=0.0, errors=0.0))
        assert (event.kind, event.slot, event.kept, event.gain) == (EventKind.CULLED, idle, False, 0.0)
        assert "does not earn its rent" in event.why
        assert slots_grown(training) == [useful]
        assert torch.equal(training.model(x), before)
        assert state_of(training.model, idle) is SeedState.EMBARGOED
        held = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in training.model.parameters()}
        assert count_params(training.model).host == host_params
        training.train(2 * EVERY, growth)
        assert growth.shrink(FREE) == []


def test_no_rent_takes_nothing_that_helps_and_a_high_one_takes_all(root: Path) -> None:
    training, growth = grown(root)
    slots = training.slots[:2]
    with growth:
        needing(training, growth, *slots)
        digest = growth.digest()
        assert growth.shrink(FREE) == []
        assert growth.digest() == digest
        events = growth.shrink(esper.Rent(params=1e3, flops=1e3))
        assert sorted(event.slot for event in events) == sorted(slots)
        assert slots_grown(training) == []
        assert all(event.gain is not None and event.gain_error is not None for event in events)


def test_a_graft_that_another_stands_in_for_leaves_alone(root: Path) -> None:
    training, growth = grown(root)
    x = training.host.batch(seed=10**6).x

    def validate(model: nn.Module) -> Tensor:
        none = not any(entry.active for entry in topology(model))
        return 0.0 * model(x).sum(dim=1) + 1.0 + 5.0 * none

    with growth:
        growth._engine.observer.held_out._validate = validate
        assert len(growth.shrink(esper.Rent(params=0.1, flops=0.0))) == 1


def test_what_an_earlier_run_grew_may_leave_too_and_frees_its_parameters(root: Path) -> None:
    training, growth = grown(root)
    growth.close()
    idle = training.slots[0]
    silence(training, idle)
    with training.attach(root, budget="x99") as again:
        needing(training, again, training.slots[1])
        before = again._engine.trials.inherited_params
        (event,) = again.shrink(esper.Rent(params=1e-6, flops=0.0, errors=0.0))
        assert event.slot == idle
        assert again._engine._candidates.inherited_params == before - event.added_params
        training.train(EVERY, again)


def test_what_is_on_trial_is_not_touched(root: Path) -> None:
    reseed(3)
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    with training.attach(root) as growth:
        growth.graft(training.slots[0], "gated_conv")
        assert growth.shrink(esper.Rent(params=1e3)) == []
        assert slots_grown(training) == [training.slots[0]]


def test_one_loss_says_nothing_and_a_negative_price_is_refused(root: Path) -> None:
    _, growth = grown(root)
    with growth:
        growth._engine.observer.held_out._validate = lambda model: torch.ones(1)
        with pytest.raises(ConfigError, match="one held-out loss"):
            growth.shrink()
    with pytest.raises(ConfigError, match="negative price"):
        esper.Rent(params=-1.0)
