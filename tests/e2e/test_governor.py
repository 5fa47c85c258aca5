"""What happens when values go wrong in a training that grows: found, taken back to the bit, or said; never in a loop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.contracts.adaptation import Verdict
from esper.errors import ConfigError, GraftFailed
from esper.kasmina import SeedState, placement_of, topology
from esper.kasmina.placement import CHILD
from esper.services.tolaria.config import GovernorConfig
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.soundness import Soundness
from esper.testing.zoo import ZOO
from tests.laws.test_law_5_resumable import through_a_file
from tests.laws.training import COMBINATIONS, EVERY, Training, reseed, stock


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs with a library that has every kernel of the zoo."""
    return stock(tmp_path_factory.mktemp("runs"))


def begun(root: Path, *, host: str = "residual_mlp", steps: int = EVERY, **changes: Any) -> tuple[Training, Growth]:
    """Return an attached training that has done some steps."""
    training = Training(ZOO[host], COMBINATIONS[2])
    growth = training.attach(root, **{"steps": 600, **changes})
    reseed(3)
    training.train(steps, growth)
    return training, growth


def of(growth: Growth, kind: EventKind) -> list[GrowthEvent]:
    return [event for event in growth.events if event.kind is kind]


def state(training: Training, event: GrowthEvent) -> SeedState:
    return placement_of(training.model).seeds[event.slot, event.seed_idx].state


@torch.no_grad()
def spoil(training: Training, *, graft: bool, value: float = math.nan) -> None:
    """Plant a value into a weight of the newest graft, or of the host."""
    named = [p for name, p in training.model.named_parameters() if (f"{CHILD}." in name) is graft]
    named[-1].view(-1)[0] = value


def nan_loss(training: Training, growth: Growth) -> list[GrowthEvent]:
    """Train on a batch that has a NaN in it."""
    loss = training.host.loss(training.model, training.loader.next()) * math.nan
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return growth.step(loss)


def infinite_gradient(training: Training, growth: Growth) -> list[GrowthEvent]:
    """Take a step with one infinite gradient, unclipped; the loss is finite."""
    loss = training.host.loss(training.model, training.loader.next())
    training.optimizer.zero_grad()
    loss.backward()
    first = next(training.model.parameters())
    first.grad = torch.full_like(first, math.inf)
    training.optimizer.step()
    return growth.step(loss)


def nan_in_graft(training: Training, growth: Growth) -> list[GrowthEvent]:
    spoil(training, graft=True)
    training.train(1, growth)
    return []


def nan_in_host(training: Training, growth: Growth) -> list[GrowthEvent]:
    spoil(training, graft=False)
    training.train(1, growth)
    return []


def explosion(training: Training, growth: Growth) -> list[GrowthEvent]:
    """Multiply the rate of the graft's group, so that weights, and soon the loss, leave all bounds."""
    training.optimizer.param_groups[-1]["initial_lr"] = 1e38
    training.schedule.base_lrs[-1] = 1e38
    training.train(1, growth)
    return []


INJURIES: dict[str, Callable[[Training, Growth], list[GrowthEvent]]] = {
    "NaN in a weight of the graft": nan_in_graft,
    "NaN in a weight of the host": nan_in_host,
    "NaN in a batch": nan_loss,
    "an infinite gradient": infinite_gradient,
    "an exploding rate of the graft's group": explosion,
}


@pytest.mark.parametrize("injury", INJURIES)
def test_values_that_are_not_finite_are_taken_back_to_the_bit(injury: str, root: Path) -> None:
    training, growth = begun(root)
    with growth:
        before = growth.digest()
        event = growth.graft(training.slots[-1], "mlp_adapter")
        training.train(1, growth)
        INJURIES[injury](training, growth)
        for _ in range(EVERY):
            if of(growth, EventKind.ROLLED_BACK):
                break
            training.train(1, growth)
        (undone,) = of(growth, EventKind.ROLLED_BACK)
        assert growth.digest() == before
        assert "not finite" in undone.why
        assert "the loader in state= goes back with it" in undone.why
        assert state(training, undone) is SeedState.LOCKED
        assert growth._engine.reports.told[-1].verdict is Verdict.ROLLED_BACK
        assert growth._engine.reports.told[-1].decision_id == event.decision_id
        assert not topology(training.model)
        losses = training.train(2 * EVERY, growth)
        assert all(map(math.isfinite, losses)), "the run goes on"


def test_a_rollback_at_once_equals_a_training_in_which_nothing_grew(root: Path) -> None:
    twin = Training(ZOO["residual_mlp"], COMBINATIONS[2])
    reseed(3)
    twin.train(EVERY)
    wanted = twin.train(EVERY), twin.picture()
    training, growth = begun(root)
    with growth:
        growth.graft(training.slots[-1], "mlp_adapter")
        training.train(2, growth)
        nan_loss(training, growth)
        assert of(growth, EventKind.ROLLED_BACK)
        assert training.train(EVERY, growth) == wanted[0]
        assert not training.picture().differences(wanted[1])


def test_the_training_loss_convicts_at_the_very_step(root: Path) -> None:
    training, growth = begun(root)
    with growth:
        growth.graft(training.slots[-1], "mlp_adapter")
        training.train(1, growth)
        (undone,) = nan_loss(training, growth)
        assert undone.kind is EventKind.ROLLED_BACK


def test_without_a_loader_in_state_the_event_says_what_is_not_repeated(root: Path) -> None:
    training, growth = begun(root)
    growth.close()
    with training.attach(root, state=()) as growth:
        training.train(EVERY, growth)
        growth.graft(training.slots[-1], "mlp_adapter")
        training.train(2, growth)
        (undone,) = nan_loss(training, growth)
        assert "the batches of 3 steps are not repeated" in undone.why


@pytest.mark.parametrize("injury", ["NaN in a weight of the host", "NaN in a batch", "an infinite gradient"])
def test_where_nothing_has_grown_it_says_so_once_and_touches_nothing(injury: str, root: Path) -> None:
    twin = Training(ZOO["residual_mlp"], COMBINATIONS[2])
    reseed(3)
    twin.train(EVERY)
    silent = twin.attach(root, governor=False)
    training, growth = begun(root)
    with growth, silent:
        for part, run in ((twin, silent), (training, growth)):
            reseed(4)
            INJURIES[injury](part, run)
            part.train(3 * EVERY, run)
        (said,) = of(growth, EventKind.DIVERGED)
        assert "training is left alone" in said.why
        assert not of(growth, EventKind.ROLLED_BACK)
        assert not of(silent, EventKind.DIVERGED)
        assert torch.equal(*(_flat(part).isnan() for part in (twin, training)))


def _flat(training: Training) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in training.model.parameters()])


def test_a_bad_loss_alone_convicts_nobody_until_it_lasts(root: Path) -> None:
    """As with a gradient scaler, which skips the step: the weights stay finite."""
    training, growth = begun(root)
    with growth:
        growth.graft(training.slots[-1], "mlp_adapter")
        nan = torch.tensor(math.nan)
        assert not growth.step(nan)
        assert not growth.step(nan)
        training.train(1, growth)
        assert not growth.step(nan)
        assert not of(growth, EventKind.ROLLED_BACK)
        growth.step(nan)
        growth.step(nan)
        assert "the last 3 training losses are not finite" in of(growth, EventKind.ROLLED_BACK)[0].why


def test_the_newest_graft_is_blamed_first_then_the_next_then_nobody(root: Path) -> None:
    training, growth = begun(root)
    with growth:
        first = growth.graft(training.slots[0], "mlp_adapter")
        second = growth.graft(training.slots[-1], "mlp_adapter")
        training.train(1, growth)
        (undone,) = nan_loss(training, growth)
        assert undone.slot == second.slot
        assert [entry.slot for entry in topology(training.model)] == [first.slot]
        training.train(1, growth)
        (undone,) = nan_loss(training, growth)
        assert undone.slot == first.slot
        third = growth.graft(training.slots[1], "mlp_adapter")
        training.train(1, growth)
        (said,) = nan_loss(training, growth)
        assert said.kind is EventKind.DIVERGED
        assert "no graft did it" in said.why
        assert [entry.slot for entry in topology(training.model)] == [third.slot]
        assert not nan_loss(training, growth)
        training.train(2 * EVERY, growth)
        assert len(of(growth, EventKind.ROLLED_BACK)) == 2


def test_a_state_that_is_not_sound_is_never_held(root: Path) -> None:
    training, growth = begun(root)
    with growth:
        spoil(training, graft=False)
        before = training.picture()
        with pytest.raises(GraftFailed, match="not finite"):
            growth.graft(training.slots[-1], "mlp_adapter")
        assert not growth._engine.trials._surgeon.held
        assert before.topology == training.picture().topology


@pytest.mark.parametrize("spoilt", ["parameter", "buffer", "moment"])
def test_soundness_names_what_is_not_finite(spoilt: str) -> None:
    training = Training(ZOO["resnet"], COMBINATIONS[2])
    training.train(1)
    training.model.register_buffer("mask", torch.full((2,), -math.inf))
    soundness = Soundness(training.subject)
    assert soundness.fault() is None
    with torch.no_grad():
        if spoilt == "parameter":
            next(training.model.parameters()).view(-1)[0] = math.inf
        elif spoilt == "buffer":
            next(b for n, b in training.model.named_buffers() if "running_mean" in n)[0] = math.nan
        else:
            next(iter(training.optimizer.state.values()))["exp_avg"].view(-1)[0] = math.nan
    fault = soundness.fault()
    assert fault is not None
    assert ("exp_avg of" in fault) == (spoilt == "moment")


def test_a_lasting_rise_of_the_training_loss_is_taken_back_within_a_window(root: Path) -> None:
    every = 20
    training, growth = begun(root, steps=5 * every, every=every)
    with growth:
        event = growth.graft(training.slots[-1], "mlp_adapter")
        _worsen(training)
        training.train(2 * every, growth)
        (undone,) = of(growth, EventKind.ROLLED_BACK)
        assert undone.slot == event.slot
        assert "lies lasting above" in undone.why
        assert undone.step == event.step
        assert "batches of 20 steps" in undone.why, "one window after the join"
        assert state(training, undone) is SeedState.LOCKED


def _worsen(training: Training) -> None:
    """Let the newest graft harm: its rate is ten thousand times the host's."""
    training.schedule.base_lrs[-1] *= 1e4
    training.optimizer.param_groups[-1]["lr"] *= 1e4


def test_a_graft_that_does_no_harm_stays(root: Path) -> None:
    training, growth = begun(root, steps=100, every=20)
    with growth:
        growth.graft(training.slots[-1], "mlp_adapter")
        training.train(100, growth)
        assert not of(growth, EventKind.ROLLED_BACK)
        assert not of(growth, EventKind.DIVERGED)


def test_a_validate_that_returns_nan_blames_a_graft_only_where_it_was_finite_before(root: Path) -> None:
    broken = [False]

    def validate(_model: nn.Module) -> Tensor:
        return torch.tensor([math.nan if broken[0] else 1.0])

    training, growth = begun(root, validate=validate)
    with growth:
        growth.graft(training.slots[0], "mlp_adapter")
        broken[0] = True
        training.train(EVERY, growth)
        (undone,) = of(growth, EventKind.ROLLED_BACK)
        assert "held-out loss is not finite" in undone.why
        growth.graft(training.slots[-1], "mlp_adapter")
        training.train(4 * EVERY, growth)
        assert len(of(growth, EventKind.ROLLED_BACK)) == 1
        assert len(of(growth, EventKind.DIVERGED)) == 1


def test_a_graft_that_raises_in_forward_reaches_the_caller_who_can_roll_it_back(root: Path) -> None:
    training, growth = begun(root)
    with growth:
        before = growth.digest()
        event = growth.graft(training.slots[-1], "mlp_adapter")
        kernel = next(m for name, m in training.model.named_modules() if name.endswith(".kernel"))

        def raises(_h: Tensor) -> Tensor:
            raise RuntimeError("planted")

        kernel.forward = raises  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="planted"):
            training.train(1, growth)
        growth.rollback(event)
        assert growth.digest() == before
        assert all(map(math.isfinite, training.train(EVERY, growth)))


def test_the_last_known_good_costs_the_steps_since_the_boundary_and_no_graft(root: Path) -> None:
    config = GovernorConfig(last_known_good=True)
    training, growth = begun(root, governor=config)
    with growth:
        event = growth.graft(training.slots[-1], "mlp_adapter")
        training.train(2 * EVERY, growth)
        wanted = growth.digest()
        training.train(1, growth)
        (undone,) = nan_loss(training, growth)
        assert undone.slot == ""
        assert f"the state of step {3 * EVERY} was put back" in undone.why
        assert growth.digest() == wanted
        assert len(topology(training.model)) == 1
        training.train(1, growth)
        (undone,) = nan_loss(training, growth)
        assert undone.slot == event.slot, "what comes back is blamed on the graft"


@pytest.mark.parametrize("good", [False, True])
def test_no_more_states_are_held_than_it_says(good: bool, root: Path) -> None:
    training, growth = begun(root, host="nested_sequential", governor=GovernorConfig(last_known_good=good))
    with growth:
        for slot in training.slots[:3]:
            growth.graft(slot, "mlp_adapter")
            training.train(EVERY, growth)
        engine = growth._engine
        assert len(engine.trials._surgeon.held) == 2
        assert engine.governor is not None
        assert (engine.governor._good is not None) is good


def test_what_the_governor_knows_is_resumed(root: Path) -> None:
    config = GovernorConfig(last_known_good=True)
    training, growth = begun(root, governor=config, steps=60, every=20)
    growth.graft(training.slots[-1], "mlp_adapter")
    training.train(30, growth)
    saved = growth.state_dict()
    growth.close()
    resumed = Training(ZOO["residual_mlp"], COMBINATIONS[2], seed=1)
    with resumed.attach(root, governor=config, every=20) as again:
        again.load_state_dict(saved)
        wanted = growth._engine.governor
        assert again._engine.governor is not None
        assert wanted is not None
        assert again._engine.governor._tests == wanted._tests
        assert wanted._tests
        assert list(again._engine.governor._losses.latest) == list(wanted._losses.latest)
        (undone,) = nan_loss(resumed, again)
        assert "the state of step 80 was put back" in undone.why
        saved = through_a_file(again.state_dict())
    last = Training(ZOO["residual_mlp"], COMBINATIONS[2], seed=2)
    with last.attach(root, governor=config, every=20) as after:
        after.load_state_dict(saved)
        assert after._engine.governor is not None
        assert after._engine.governor._acts == again._engine.governor._acts
        assert after._engine.governor._acts


@pytest.mark.parametrize("bad", ["yes", 1, None])
def test_a_governor_that_is_none_is_refused(bad: Any, root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    with pytest.raises(ConfigError, match="governor"):
        training.attach(root, governor=bad)


@pytest.mark.parametrize("bad", [{"false_alarms": 0.0}, {"patience": 0}, {"margin_ratio": -1.0}])
def test_a_setting_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GovernorConfig(**bad)
