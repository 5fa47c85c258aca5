"""Law 3: what learns apart cannot touch the host, not even with NaN; the host trains to the bit as if it were not there."""

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.contracts.adaptation import Action, AdaptationDecision
from esper.errors import ConfigError
from esper.ir import REGISTRY
from esper.kasmina import SeedState, join, placement_of
from esper.kasmina.incubation import paused
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.incubator import Apprentice, Incubator
from esper.services.tolaria.kernels import ReadyKernel
from esper.services.tolaria.snapshot import capture, restore
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, kernel_for
from tests.laws.training import (
    COMBINATIONS,
    EVERY,
    Training,
    equal,
    reseed,
)

BEFORE, APART, AFTER = 3, 6, 3
QUICK = ("dropout", "resnet", "transformer")


def some_combination(*, quick: tuple[str, ...] = QUICK) -> pytest.MarkDecorator:
    """Return every host of the zoo with one optimizer and schedule each; all but a few are slow."""
    return pytest.mark.parametrize(
        ("host", "combination"),
        [
            pytest.param(
                host,
                COMBINATIONS[index % len(COMBINATIONS)],
                marks=() if name in quick else pytest.mark.slow,
                id=name,
            )
            for index, (name, host) in enumerate(ZOO.items())
        ],
    )


class Planted(nn.Module):
    """A kernel with something wrong in it."""

    def __init__(self, kernel: nn.Module, wrong: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.kernel, self._wrong = kernel, wrong

    def forward(self, h: Tensor) -> Any:
        return self._wrong(self.kernel(h))


class InfinityBack(torch.autograd.Function):
    """Returns its input, and a gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * float("inf")


def raises(value: Tensor) -> Tensor:
    raise RuntimeError("planted")


def draws(value: Tensor) -> Tensor:
    """Draw from every global generator."""
    return value * torch.rand(()) * random.random()


FAULTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sound": (lambda value: value, ""),
    "nan": (lambda value: value * float("nan"), "not finite"),
    "infinite gradient": (InfinityBack.apply, "not finite"),
    "raises": (raises, "RuntimeError: planted"),
    "another shape": (lambda value: value[:1], "it returned shape"),
    "no tensor": (lambda value: None, "it returned a NoneType"),
    "overflows": (lambda value: (value + 1.0) * 1e38 * 1e38, "not finite"),
    "draws": (draws, ""),
}


def take_in(training: Training, *, steps: int = APART, others: tuple[object, ...] = ()) -> tuple[Incubator, Apprentice]:
    """Let the first blueprint of the last slot learn apart."""
    slot = training.slots[-1]
    blueprint = REGISTRY.eligible(placement_of(training.model).place(slot).site())[0]
    data, kernel_id = kernel_for(training.model, slot, blueprint)
    incubator = Incubator.beside(training.model, training.optimizer, others)
    decision = AdaptationDecision(
        action=Action.LOAD_KERNEL, target_layer=slot, blueprint=blueprint, kernel_id=kernel_id, strategy="manual"
    )
    return incubator, incubator.take_in(decision, ReadyKernel(kernel_id, blueprint, data, 0.0), steps=steps)


def train(training: Training, steps: int, incubator: Incubator | None = None) -> tuple[list[float], list[str]]:
    """Train, and step what learns apart; return the losses, and why something learned no more."""
    losses, reasons = [], []
    for _ in range(steps):
        losses += training.train(1)
        if incubator is not None:
            reasons += [why for _, why in incubator.step(look=True)]
    return losses, reasons


def started(host: ZooHost, combination: tuple[str, str]) -> Training:
    training = Training(host, combination)
    reseed(3)
    training.train(BEFORE)
    return training


@pytest.mark.parametrize("fault", FAULTS)
@some_combination()
def test_the_host_trains_to_the_bit_as_if_nothing_learned_beside_it(
    host: ZooHost, combination: tuple[str, str], fault: str
) -> None:
    twin = started(host, combination)
    keys = list(twin.model.state_dict())
    wanted = (*train(twin, APART)[:1], twin.picture(), train(twin, AFTER)[0], twin.picture())
    training = started(host, combination)
    incubator, apprentice = take_in(training)
    wrong, reason = FAULTS[fault]
    sound = apprentice.incubation.kernel
    apprentice.incubation.kernel = Planted(sound, wrong)
    before = [parameter.detach().clone() for parameter in sound.parameters()]
    losses, reasons = train(training, APART, incubator)
    assert losses == wanted[0]
    assert list(training.model.state_dict()) == keys
    assert not training.picture().differences(wanted[1], without=("classes",))
    assert [r for r in reasons if reason in r] if reason else not reasons, reasons
    assert len(reasons) == bool(reason)
    if not reason:
        assert apprentice.incubation.passes >= APART
        assert not equal(before, [p.detach() for p in sound.parameters()]), "it learned"
        incubator.release(apprentice)
    assert not training.picture().differences(wanted[1])
    assert train(training, AFTER)[0] == wanted[2]
    assert not training.picture().differences(wanted[3])


@pytest.mark.parametrize(
    "naive", [lambda h, f: h + (f - f.detach()), lambda h, f: torch.where(torch.zeros(()) == 0, h, h + f)]
)
def test_the_naive_ways_let_a_nan_through_to_the_host(naive: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The control: these would fail the law's test."""
    layer = nn.Linear(3, 3)
    h = layer(torch.ones(2, 3))
    f = h * torch.tensor(float("nan"), requires_grad=True)
    out = naive(h, f)
    out.sum().backward()
    assert layer.weight.grad is not None
    assert not (bool(torch.isfinite(out).all()) and bool(torch.isfinite(layer.weight.grad).all()))


@EVERY_HOST
def test_it_gets_the_gradient_that_it_would_have_if_it_were_joined(host: ZooHost) -> None:
    training = started(host, COMBINATIONS[0])
    _, apprentice = take_in(training)
    kernel = apprentice.kernel
    batch = host.batch(seed=5)
    training.model.eval()
    host.loss(training.model, batch).backward()
    apart = {name: p.grad for name, p in kernel.named_parameters()}
    joined = Training(host, COMBINATIONS[0])
    joined.model.load_state_dict(training.model.state_dict())
    data, kernel_id = kernel_for(joined.model, joined.slots[-1], apprentice.incubation.blueprint)
    newborn = join(joined.model, joined.slots[-1], 0, data, kernel_id=kernel_id)
    joined.model.eval()
    host.loss(joined.model, batch).backward()
    for name, parameter in newborn.kernel.named_parameters():
        assert parameter.grad is not None
        assert apart[name] is not None, name
        torch.testing.assert_close(apart[name], parameter.grad, msg=name)


@pytest.mark.parametrize("combination", [COMBINATIONS[0], COMBINATIONS[2]], ids="-".join)
@EVERY_HOST
def test_a_nan_stays_apart_under_every_optimizer(host: ZooHost, combination: tuple[str, str]) -> None:
    twin, training = started(host, combination), started(host, combination)
    reseed(9)
    wanted = train(twin, APART)[0]
    incubator, apprentice = take_in(training)
    apprentice.incubation.kernel = Planted(apprentice.incubation.kernel, FAULTS["nan"][0])
    reseed(9)
    losses, reasons = train(training, APART, incubator)
    assert losses == wanted
    assert len(reasons) == 1
    assert not incubator.apprentices
    assert not training.picture().differences(twin.picture())


def scaled(training: Training, steps: int, incubator: Incubator | None, scaler: torch.amp.GradScaler) -> list[float]:
    """Train under autocast with a scaler, two batches a step, clipped."""
    losses = []
    for _ in range(steps):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = training.host.loss(training.model, training.loader.next())
            scaler.scale(loss).backward()
            losses.append(float(loss.detach()))
        scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), 0.5)
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        if incubator is not None:
            incubator.step(look=True)
    return losses


@pytest.mark.parametrize("fault", ["sound", "nan", "infinite gradient", "raises"])
@pytest.mark.parametrize("name", ["dropout", "resnet", "transformer", "recurrent"])
def test_it_stays_apart_under_autocast_scaling_accumulation_and_clipping(name: str, fault: str) -> None:
    def run(apart: bool) -> tuple[Training, list[float], dict[str, Any]]:
        training = started(ZOO[name], COMBINATIONS[2])
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        incubator = None
        if apart:
            incubator, apprentice = take_in(training, others=(scaler,))
            apprentice.incubation.kernel = Planted(apprentice.incubation.kernel, FAULTS[fault][0])
        return training, scaled(training, APART, incubator, scaler), scaler.state_dict()

    twin, losses, scale = run(False)
    training, same_losses, same_scale = run(True)
    assert same_losses == losses
    assert same_scale == scale
    assert not training.picture().differences(twin.picture(), without=("classes",))


def test_gradients_are_unscaled_for_what_learns_apart() -> None:
    gradients = []
    for scale in (1.0, 4096.0):
        training = started(ZOO["mlp"], COMBINATIONS[0])
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        _, apprentice = take_in(training, others=(scaler,))
        scaler.scale(ZOO["mlp"].loss(training.model, ZOO["mlp"].batch())).backward()
        gradients.append([p.grad for p in apprentice.kernel.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_scale_of_the_loss_that_is_too_large_for_it_costs_it_a_batch_and_no_more() -> None:
    training = started(ZOO["mlp"], COMBINATIONS[0])
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    incubator, apprentice = take_in(training, others=(scaler,))
    sound = apprentice.incubation.kernel
    for kernel, learns in ((Planted(sound, InfinityBack.apply), False), (sound, True)):
        apprentice.incubation.kernel = kernel
        scaler.scale(ZOO["mlp"].loss(training.model, ZOO["mlp"].batch())).backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in apprentice.kernel.parameters()) is learns
        assert not incubator.step(look=True)
        assert all(bool(torch.isfinite(p).all()) for p in apprentice.kernel.parameters())


def test_a_batch_whose_gradient_is_not_finite_does_not_reach_it() -> None:
    training = started(ZOO["mlp"], COMBINATIONS[0])
    incubator, apprentice = take_in(training)
    loss = ZOO["mlp"].loss(training.model, ZOO["mlp"].batch())
    (loss * float("inf")).backward()
    assert not incubator.step(look=True)
    assert all(bool(torch.isfinite(p).all()) for p in apprentice.kernel.parameters())


def test_what_the_host_does_in_place_after_the_slot_still_works() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
    host = ZooHost("in place", lambda: copy.deepcopy(net), (3,), slots=("0",))
    twin, training = started(host, COMBINATIONS[0]), started(host, COMBINATIONS[0])
    reseed(1)
    wanted = train(twin, APART)[0]
    incubator, apprentice = take_in(training)
    reseed(1)
    assert train(training, APART, incubator)[0] == wanted
    assert apprentice.incubation.passes >= APART


def test_it_follows_mode_type_and_device_and_copies_do_not_learn() -> None:
    training = started(ZOO["resnet"], COMBINATIONS[0])
    incubator, apprentice = take_in(training)
    train(training, 1, incubator)
    training.model.eval()
    assert not apprentice.kernel.training
    training.model.train()
    assert apprentice.kernel.training
    twin = copy.deepcopy(training.model)
    ZOO["resnet"].loss(twin, ZOO["resnet"].batch()).backward()
    assert apprentice.incubation.passes == 1
    training.model.double()
    assert {p.dtype for p in apprentice.kernel.parameters()} == {torch.float64}
    training.model.float()
    with paused(training.model):
        ZOO["resnet"].loss(training.model, ZOO["resnet"].batch()).backward()
    assert apprentice.incubation.passes == 1
    training.optimizer.zero_grad()
    train(training, 1, incubator)
    assert apprentice.incubation.passes == 2


@some_combination()
def test_a_state_in_the_middle_of_it_is_put_back_to_the_bit(host: ZooHost, combination: tuple[str, str]) -> None:
    training = started(host, combination)
    incubator, _ = take_in(training)
    subject = replace(training.subject, others=(*training.subject.others, incubator))
    train(training, 2, incubator)
    snapshot = type(capture(subject)).from_dict(capture(subject).to_dict())
    before = incubator.state_dict()
    wanted = train(training, 3, incubator)[0], training.picture(), incubator.state_dict()
    assert not equal(before, wanted[2])
    for apprentice in list(incubator.apprentices.values()):
        incubator.release(apprentice)
    restore(subject, snapshot)
    assert equal(incubator.state_dict(), before)
    assert (train(training, 3, incubator)[0], equal(incubator.state_dict(), wanted[2])) == (wanted[0], True)
    assert not training.picture().differences(wanted[1])


def logits(training: Training) -> Tensor:
    training.model.eval()
    with torch.no_grad():
        found: Tensor = training.model(training.host.batch(seed=77).x)
    training.model.train()
    return found


@some_combination(quick=("shared", "tied_language_model"))
def test_it_joins_at_the_boundary_after_its_steps_so_weakly_that_nothing_moves_and_grows_to_full_strength(
    host: ZooHost, combination: tuple[str, str], root: Path
) -> None:
    training = Training(host, combination)
    slot = training.slots[-1]
    with training.attach(root) as growth:
        reseed(3)
        training.train(EVERY, growth)
        event = growth.graft(slot, "mlp_adapter", incubate=5)
        assert event.kind is EventKind.INCUBATING
        assert state(training, slot) is SeedState.TRAINING
        training.train(2 * EVERY - 1, growth)
        assert state(training, slot) is SeedState.TRAINING
        before: list[Tensor] = []
        engine = growth._engine
        graduate = engine.grafting.incubations.graduate

        def watched(*args: Any, **kwargs: Any) -> Any:
            before.append(logits(training))
            found = graduate(*args, **kwargs)
            before.append(logits(training))
            return found

        engine.grafting.incubations.graduate = watched  # type: ignore[method-assign]
        training.train(1, growth)
        assert state(training, slot) is SeedState.BLENDING
        joined = growth.events[-1]
        assert (joined.kind, joined.decision_id) == (EventKind.GRAFTED, event.decision_id)
        moved = (before[0] - before[1]).abs() / before[0].abs().clamp(min=1.0)
        assert float(moved.max()) <= 1e-6
        trial = engine.trials.position.trials[event.decision_id]
        assert 0 < trial.first_alpha < 1
        strengths = []
        for _ in range(EVERY):
            training.train(1, growth)
            strengths.append(trial.rise.alpha(engine.trials.position.step))
        assert strengths == sorted(strengths, key=float)
        assert strengths[-1] == 1.0
        assert any(name.endswith("alpha") and float(b) == 1.0 for name, b in training.model.named_buffers())
        assert state(training, slot) is not SeedState.BLENDING
        training.train(EVERY, growth)


def state(training: Training, slot: str) -> SeedState:
    return placement_of(training.model).seeds[slot, 0].state


@pytest.mark.parametrize("passed", [3, EVERY + 2, 2 * EVERY + 2], ids=["apart", "longer apart", "blending"])
@some_combination(quick=("dropout", "transformer"))
def test_a_run_that_is_resumed_in_the_middle_equals_the_unbroken_one(
    host: ZooHost, combination: tuple[str, str], passed: int, root: Path
) -> None:
    def begun() -> tuple[Training, Growth]:
        training = Training(host, combination)
        growth = training.attach(root)
        reseed(3)
        training.train(EVERY, growth)
        growth.graft(training.slots[-1], "mlp_adapter", incubate=2 * EVERY)
        training.train(passed, growth)
        return training, growth

    training, growth = begun()
    saved = copy.deepcopy(growth.state_dict())
    wanted = training.train(3 * EVERY, growth), training.picture(), growth.digest()
    growth.close()
    resumed = Training(host, combination, seed=1)
    with resumed.attach(root) as again:
        again.load_state_dict(saved)
        assert resumed.train(3 * EVERY, again) == wanted[0]
        assert again.digest() == wanted[2]
        assert not resumed.picture().differences(wanted[1])


def test_a_rollback_puts_what_learned_apart_back_as_well(root: Path) -> None:
    training = Training(ZOO["residual_mlp"], COMBINATIONS[2])
    with training.attach(root) as growth:
        reseed(3)
        training.train(EVERY, growth)
        growth.graft(training.slots[0], "mlp_adapter", incubate=40)
        training.train(3, growth)
        incubator = growth._engine.trials.incubator
        before = incubator.state_dict()
        event = growth.graft(training.slots[-1], "mlp_adapter")
        wanted = training.picture()
        training.train(3, growth)
        assert not equal(before, incubator.state_dict())
        growth.rollback(event)
        assert equal(before, incubator.state_dict())
        assert wanted.differences(training.picture())
        assert state(training, training.slots[0]) is SeedState.TRAINING


def test_one_that_fails_is_culled_with_the_reason_and_the_run_goes_on_to_the_bit(root: Path) -> None:
    twin, training = (Training(ZOO["dropout"], COMBINATIONS[2]) for _ in range(2))
    reseed(3)
    wanted = twin.train(3 * EVERY)
    with training.attach(root) as growth:
        reseed(3)
        losses = training.train(EVERY + 1, growth)
        event = growth.graft(training.slots[0], "mlp_adapter", incubate=20)
        (apprentice,) = growth._engine.trials.incubator.apprentices.values()
        apprentice.incubation.kernel = Planted(apprentice.incubation.kernel, FAULTS["nan"][0])
        losses += training.train(1, growth)
        culled = growth.events[-1]
        assert culled.kind is EventKind.CULLED
        assert "not finite" in culled.why
        assert culled.decision_id == event.decision_id
        assert state(training, training.slots[0]) is SeedState.EMBARGOED
        losses += training.train(3 * EVERY - len(losses), growth)
        assert losses == wanted
        assert not training.picture().differences(twin.picture())


def test_one_can_be_withdrawn_by_hand_and_ends_with_its_run(root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    plain = [type(module) for module in training.model.modules()]
    with training.attach(root) as growth:
        first = growth.graft(training.slots[0], "mlp_adapter", incubate=20)
        assert growth.rollback(first).kind is EventKind.CANCELLED
        growth.graft(training.slots[-1], "mlp_adapter", incubate=20)
        assert [type(module) for module in training.model.modules()] != plain
    assert [type(module) for module in training.model.modules()] == plain
    assert state(training, training.slots[-1]) is SeedState.DORMANT


@pytest.mark.parametrize("steps", [-1, 1.5, True, "3"])
def test_a_bad_number_of_steps_is_refused(steps: Any, root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    with pytest.raises(ConfigError, match="incubate"):
        training.attach(root, incubate=steps)
    with training.attach(root) as growth, pytest.raises(ConfigError, match="incubate"):
        growth.graft(training.slots[0], "mlp_adapter", incubate=steps)


def test_a_compiled_model_is_refused() -> None:
    training = started(ZOO["mlp"], COMBINATIONS[0])
    training.model.compile(backend="eager")
    with pytest.raises(ConfigError, match="compiled"):
        take_in(training)
