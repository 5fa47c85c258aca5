"""Law 5 at moments that are easily forgotten: between micro-batches, after an optimizer step that raised, in mid-question."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esper import NewbornRate
from esper.contracts.adaptation import AdaptationDecision, SystemStatePacket
from esper.errors import Unavailable
from esper.kasmina.graft import strength
from esper.services.tolaria.growth import Growth
from esper.testing.zoo import ZOO
from tests.laws.test_law_5_resumable import story, through_a_file, until_ready
from tests.laws.training import COMBINATIONS, EVERY, Training, equal, reseed

MICRO_BATCHES = 3


def accumulate(training: Training, micro_batches: int, growth: Growth, *, late: bool) -> list[float]:
    """Train by micro-batches, and return their losses.

    Args:
        training: Its loader tells how far the open step is.
        micro_batches: How many.
        growth: The attached run.
        late: Whether gradients are cleared just before the next backward pass, rather than after the step.
    """
    losses = []
    training.model.train()
    for _ in range(micro_batches):
        if late and training.loader.position % MICRO_BATCHES == 0:
            training.optimizer.zero_grad()
        loss = training.host.loss(training.model, training.loader.next()) / MICRO_BATCHES
        loss.backward()
        if training.loader.position % MICRO_BATCHES == 0:
            training.optimizer.step()
            training.schedule.step()
            if not late:
                training.optimizer.zero_grad(set_to_none=False)
            growth.step(loss)
        losses.append(float(loss.detach()))
    return losses


def seen(growth: Growth) -> list[Any]:
    """Return what the last boundary measured."""
    observation = growth._engine._last
    if observation is None:
        return []
    signals = [(signal.layer_id, signal.step, signal.metrics, signal.health_score) for signal in observation.health]
    return [observation.point, observation.scores, signals]


@pytest.mark.parametrize(
    ("steps", "late", "apart"),
    [(5, False, True), (5, True, False), (EVERY - 1, True, True)],
    ids=["something learns apart", "cleared late", "the step is watched"],
)
def test_a_run_saved_between_two_micro_batches_goes_on_as_the_unbroken_one(
    steps: int, late: bool, apart: bool, root: Path
) -> None:
    host = ZOO["transformer"]

    def planted(growth: Growth) -> None:
        if apart:
            growth.graft(first.slots[0], "mlp_adapter", incubate=6)

    first = Training(host, COMBINATIONS[1])
    with first.attach(root) as growth:
        reseed(3)
        planted(growth)
        accumulate(first, MICRO_BATCHES * steps + 2, growth, late=late)
        saved = through_a_file(growth.state_dict())
        losses = accumulate(first, 5 * MICRO_BATCHES, growth, late=late)
        wanted, told, measured = first.picture(), story(growth), seen(growth)
    second = Training(host, COMBINATIONS[1], seed=1)
    with second.attach(root) as growth:
        growth.load_state_dict(saved)
        assert accumulate(second, 5 * MICRO_BATCHES, growth, late=late) == losses
        assert not second.picture().differences(wanted)
        assert (story(growth), seen(growth)) == (told, measured)


def test_gradients_that_the_last_step_has_used_are_not_saved(root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    with training.attach(root) as growth:
        training.train(3, growth)
        assert all(parameter.grad is not None for parameter in training.model.parameters())
        assert not growth.state_dict()["training"]["gradients"]
        training.optimizer.zero_grad()
        training.host.loss(training.model, training.loader.next()).backward()
        assert len(growth.state_dict()["training"]["gradients"]) == len(list(training.model.parameters()))


def test_a_state_that_does_not_fit_leaves_waiting_gradients_as_they_were(root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    with training.attach(root) as growth:
        training.train(3, growth)
        training.host.loss(training.model, training.loader.next()).backward()
        before = growth.state_dict()
        with pytest.raises(Exception, match="cannot be gone on from"):
            growth.load_state_dict({**before, "trials": {}})
        assert equal(growth.state_dict(), before)


def test_a_run_saved_after_an_optimizer_step_that_raised_has_the_hosts_rate(root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[1])
    rate = NewbornRate(warmup_steps=50)
    with training.attach(root, newborn_rate=rate) as growth:
        training.train(2, growth)
        growth.graft(training.slots[0], "mlp_adapter")

        def refuse(*_: object) -> None:
            raise RuntimeError("planted")

        hook = training.optimizer.register_step_pre_hook(refuse)
        with pytest.raises(RuntimeError, match="planted"):
            training.train(1, growth)
        hook.remove()
        groups = growth.state_dict()["training"]["groups"]
        assert len({group["options"]["lr"] for group in groups}) == 1
        growth.graft(training.slots[1], "mlp_adapter")
        assert len({group["lr"] for group in training.optimizer.param_groups}) == 1


@pytest.mark.parametrize("every", [1, 2])
def test_every_boundary_has_scores(every: int, root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    with training.attach(root, every=every) as growth:
        training.train(every, growth)
        for _ in range(4):
            before = growth.flops["statistics"]
            training.train(every, growth)
            assert growth.flops["statistics"] > before
            assert all(candidate.score is not None for candidate in growth.propose())


class Away:
    """A controller that cannot be reached at some boundaries."""

    def __init__(self, *boundaries: int) -> None:
        self._boundaries = boundaries

    async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        if packet.boundary in self._boundaries:
            raise Unavailable("the controller is away")
        return AdaptationDecision(reason=f"all is well at {packet.boundary}", topology_version=packet.topology_version)


def test_a_controller_that_was_away_while_a_run_was_saved_is_in_the_log_of_both(root: Path) -> None:
    first = Training(ZOO["mlp"], COMBINATIONS[0])
    with first.attach(root, controller=Away(1)) as growth:
        reseed(1)
        first.train(EVERY, growth)
        saved = through_a_file(growth.state_dict())
        first.train(EVERY, growth)
        told = story(growth)
        assert [kind for _, kind, _, _ in told] == ["unasked"]
        assert growth.counters["run"]["unasked"] == 1
    second = Training(ZOO["mlp"], COMBINATIONS[0], seed=1)
    with second.attach(root, controller=Away(1)) as growth:
        growth.load_state_dict(saved)
        second.train(EVERY, growth)
        assert story(growth) == told


def test_why_nothing_grew_is_known_after_a_resume_too(root: Path) -> None:
    first = Training(ZOO["mlp"], COMBINATIONS[0])
    ends: dict[str, Any] = {"steps": 2 * EVERY, "controller": Away()}
    with first.attach(root, **ends) as growth:
        until_ready(growth)
        first.train(EVERY + 1, growth)
        saved = through_a_file(growth.state_dict())
        first.train(EVERY - 1, growth)
        (event,) = growth.events
    second = Training(ZOO["mlp"], COMBINATIONS[0], seed=1)
    with second.attach(root, **ends) as growth:
        until_ready(growth)
        growth.load_state_dict(saved)
        second.train(EVERY - 1, growth)
        assert [event.why for event in growth.events] == [event.why] == ["all is well at 1"]


def test_the_strength_of_what_learned_apart_goes_on_rising_where_the_run_is_closed_and_attached_again(
    root: Path,
) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[1])
    slot = training.slots[0]
    with training.attach(root) as growth:
        reseed(4)
        growth.graft(slot, "mlp_adapter", incubate=EVERY)
        training.train(EVERY + 1, growth)
        first = strength(training.model, slot, 0)
        assert 0 < first < 1
    with training.attach(root) as growth:
        assert strength(training.model, slot, 0) == first  # attaching changes nothing
        training.train(EVERY // 2, growth)
        middle = strength(training.model, slot, 0)
        assert first < middle < 1
        saved = through_a_file(growth.state_dict())
        losses, wanted = training.train(EVERY, growth), training.picture()
        assert strength(training.model, slot, 0) == 1
    second = Training(ZOO["mlp"], COMBINATIONS[1], seed=1)
    with second.attach(root) as growth:
        growth.load_state_dict(saved)
        assert strength(second.model, slot, 0) == middle
        assert second.train(EVERY, growth) == losses
        assert not second.picture().differences(wanted)


def test_a_closed_run_leaves_a_strength_that_a_resumed_one_goes_on_with(root: Path) -> None:
    first = Training(ZOO["mlp"], COMBINATIONS[1])
    slot = first.slots[0]
    with first.attach(root) as growth:
        growth.graft(slot, "mlp_adapter", incubate=EVERY)
        first.train(EVERY + 1, growth)
        saved = through_a_file(growth.state_dict())
        first.train(EVERY, growth)
        wanted = torch.tensor(strength(first.model, slot, 0))
    with first.attach(root) as growth:
        growth.load_state_dict(saved)
        first.train(EVERY, growth)
        assert strength(first.model, slot, 0) == float(wanted) == 1.0
