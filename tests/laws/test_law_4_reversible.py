"""Law 4: a rollback restores topology, parameters, buffers, optimizer, schedule, generators and ``state=``, to the bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from esper.blueprints import initial_state, pack_kernel
from esper.errors import GraftFailed, NotFound
from esper.ir import REGISTRY, digest_of
from esper.kasmina import SeedState, placement_of
from esper.kasmina.passage import Passage
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.snapshot import digest
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, kernel_for
from tests.laws.training import (
    COMBINATIONS,
    EVERY,
    EVERY_COMBINATION,
    EVERY_HOST_WITH_SOME_COMBINATION,
    Training,
    equal,
    reseed,
)

BEFORE, GROWN, AFTER = 6, 5, 5
KEY = "the join"


def started(host: ZooHost, combination: tuple[str, str]) -> Training:
    """Return a training a few steps old."""
    training = Training(host, combination)
    reseed(4)
    training.train(BEFORE)
    return training


def surgeon_of(training: Training, *, held: int = 2) -> Surgeon:
    return Surgeon(training.subject, snapshots_held=held, tolerance=1e-6)


def operate(surgeon: Surgeon, training: Training, slot: str, *, seed_idx: int = 0, key: str = KEY) -> Cut:
    """Graft the first blueprint of a slot."""
    blueprint = REGISTRY.eligible(placement_of(training.model).place(slot).site())[0]
    data, kernel_id = kernel_for(training.model, slot, blueprint)
    surgeon.graft(Cut(slot, seed_idx), data, kernel_id=kernel_id, key=key, seen=None, blueprint=blueprint)
    return Cut(slot, seed_idx)


@EVERY_COMBINATION
@EVERY_HOST
def test_after_a_rollback_training_goes_on_as_if_nothing_had_ever_grown(
    host: ZooHost, combination: tuple[str, str]
) -> None:
    twin = started(host, combination)
    wanted = twin.picture(), twin.train(AFTER), twin.picture()
    training = started(host, combination)
    surgeon = surgeon_of(training)
    before = digest(training.subject)
    operate(surgeon, training, training.slots[-1])
    training.train(GROWN)
    assert {"topology", "tensors", "moments", "position"} <= set(training.picture().differences(wanted[0]))
    assert surgeon.roll_back(KEY)
    assert digest(training.subject) == before
    assert not training.picture().differences(wanted[0])
    assert training.train(AFTER) == wanted[1]
    assert not training.picture().differences(wanted[2])


@EVERY_HOST_WITH_SOME_COMBINATION
def test_a_run_that_rolls_back_is_the_training_that_was_never_attached(
    host: ZooHost, combination: tuple[str, str], root: Path
) -> None:
    twin = started(host, combination)
    wanted = twin.picture(), twin.train(AFTER), twin.picture()
    training = Training(host, combination)
    with training.attach(root) as growth:
        reseed(4)
        training.train(BEFORE, growth)
        assert not training.picture().differences(wanted[0])
        before = growth.digest()
        event = growth.graft(training.slots[-1], "mlp_adapter")
        training.train(GROWN, growth)
        assert growth.digest() != before
        growth.rollback(event)
        assert growth.digest() == before
        assert not training.picture().differences(wanted[0])
        assert training.train(AFTER, growth) == wanted[1]
        assert not training.picture().differences(wanted[2])


@pytest.mark.parametrize("again", [False, True], ids=["at once", "one by one"])
@EVERY_HOST
def test_rolling_back_an_early_graft_takes_the_later_ones_with_it(host: ZooHost, again: bool) -> None:
    training = started(host, COMBINATIONS[0])
    surgeon = surgeon_of(training)
    before = training.picture()
    operate(surgeon, training, training.slots[0], key="first")
    training.train(2)
    between = training.picture()
    operate(surgeon, training, training.slots[-1], seed_idx=1, key="second")
    training.train(2)
    if again:
        assert surgeon.roll_back("second")
        assert not training.picture().differences(between)
    assert surgeon.roll_back("first")
    assert not training.picture().differences(before)
    assert not surgeon.roll_back("first")
    assert not surgeon.held


@EVERY_COMBINATION
@EVERY_HOST
def test_joining_keeps_every_moment_and_option_of_the_host(host: ZooHost, combination: tuple[str, str]) -> None:
    training = started(host, combination)
    before = training.picture()
    operate(surgeon_of(training), training, training.slots[0])
    after = training.picture()
    assert all(after.tensors[name].equal(value) for name, value in before.tensors.items())
    assert after.moments.keys() == before.moments.keys()
    assert not before.differences(after, without=("topology", "classes", "tensors", "order", "groups", "schedule"))
    assert after.groups[: len(before.groups)] == before.groups
    newborn = after.groups[-1]
    assert len(after.groups) == len(before.groups) + 1
    assert {**newborn, "params": [], "esper_like": 0} == {
        **before.groups[newborn["esper_like"]],
        "params": [],
        "esper_like": 0,
    }
    rates = [group["lr"] for group in after.groups]
    assert training.schedule.get_last_lr() == rates


@EVERY_COMBINATION
@EVERY_HOST
def test_a_cull_that_restores_brings_all_back_but_the_position_of_the_schedule(
    host: ZooHost, combination: tuple[str, str]
) -> None:
    training = started(host, combination)
    before, state = training.picture(), digest(training.subject)
    surgeon = surgeon_of(training)
    cut = operate(surgeon, training, training.slots[0])
    training.train(GROWN)
    spent = training.schedule.last_epoch
    assert surgeon.cull(cut, key=KEY, put_back=True)
    after = training.picture()
    assert digest(training.subject) == state
    assert set(before.differences(after)) == {"schedule", "groups"}
    assert [group["params"] for group in after.groups] == [group["params"] for group in before.groups]
    assert training.schedule.last_epoch == spent == BEFORE + GROWN
    plain = started(host, combination)
    plain.train(GROWN)
    assert [group["lr"] for group in after.groups] == [group["lr"] for group in plain.picture().groups]
    training.train(AFTER)
    plain.train(AFTER)
    assert training.schedule.get_last_lr() == plain.schedule.get_last_lr()
    assert not surgeon.held


@EVERY_COMBINATION
@EVERY_HOST
def test_a_cull_that_continues_takes_the_seed_alone(host: ZooHost, combination: tuple[str, str]) -> None:
    training = started(host, combination)
    bare = training.picture()
    surgeon = surgeon_of(training)
    cut = operate(surgeon, training, training.slots[0])
    training.train(GROWN)
    grown = training.picture()
    assert not surgeon.cull(cut, key=KEY, put_back=False)
    after = training.picture()
    assert not after.differences(bare, without=tuple(set(vars(bare)) - {"topology", "classes", "order"}))
    assert after.tensors.keys() == bare.tensors.keys()
    assert all(grown.tensors[name].equal(value) for name, value in after.tensors.items())
    assert after.moments.keys() == bare.moments.keys()
    assert all(equal(moment, grown.moments[name]) for name, moment in after.moments.items())
    assert after.groups == grown.groups[:-1]
    training.train(AFTER)
    assert [group["lr"] for group in training.picture().groups] == training.schedule.get_last_lr()


@EVERY_HOST
def test_a_graft_that_fails_leaves_the_training_as_it_was(host: ZooHost) -> None:
    training = started(host, COMBINATIONS[2])
    surgeon = surgeon_of(training)
    slot = training.slots[0]
    place = placement_of(training.model).place(slot)
    ir = REGISTRY.build("mlp_adapter", place.site())
    loud = {name: value + 0.5 for name, value in initial_state(ir, seed=1, dtype="float32").items()}
    huge = {name: value * 1e30 for name, value in loud.items()}
    seen: list[Passage] = []
    hook = place.module.register_forward_hook(lambda _m, args, out: seen.append(Passage.of(args, out)))
    with torch.no_grad():
        training.model.eval()(host.batch().x)
    training.model.train()
    hook.remove()
    before = training.picture()
    for state, reason in ((loud, "not neutral"), (huge, "not finite")):
        data = pack_kernel(ir, state, seed=1)
        with pytest.raises(GraftFailed, match=reason):
            surgeon.graft(Cut(slot, 0), data, kernel_id=digest_of(data), key=KEY, seen=seen[0])
        assert not training.picture().differences(before)
    with pytest.raises(GraftFailed, match="digest"):
        surgeon.graft(Cut(slot, 0), data, kernel_id="sha256:" + "0" * 64, key=KEY, seen=None)
    assert not training.picture().differences(before)
    assert not surgeon.held


def test_what_was_learned_since_is_appended_and_never_restored(root: Path) -> None:
    training = Training(ZOO["resnet"], COMBINATIONS[0])
    with training.attach(root) as growth:
        training.train(BEFORE, growth)
        event = growth.graft("layer1.0", "gated_conv")
        training.train(EVERY, growth)
        growth.rollback(event)
        assert [each.kind for each in growth.events] == [EventKind.GRAFTED, EventKind.ROLLED_BACK]
        assert placement_of(training.model).seeds["layer1.0", 0].state is SeedState.LOCKED
        assert growth.spent_steps == BEFORE + EVERY
        with pytest.raises(GraftFailed, match="no seed is free there: locked"):
            growth.graft("layer1.0", "gated_conv")
        with pytest.raises(NotFound):
            growth.rollback(event)
        other = growth.graft("layer1.1", "gated_conv")
        growth.rollback(other)
        assert placement_of(training.model).seeds["layer1.0", 0].state is SeedState.LOCKED


def test_hooks_and_objects_of_the_user_survive_a_rollback(root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[3])
    calls: list[nn.Module] = []
    training.model.fc1.register_forward_hook(lambda module, _i, _o: calls.append(module))
    held = dict(training.model.named_parameters())
    with training.attach(root) as growth:
        training.train(BEFORE, growth)
        event = growth.graft("fc1", "gated_mlp")
        training.train(GROWN, growth)
        growth.rollback(event)
        calls.clear()
        training.train(1, growth)
    assert calls == [training.model.fc1]
    assert all(parameter is held[name] for name, parameter in training.model.named_parameters())
    assert type(training.model.fc1) is nn.Linear
