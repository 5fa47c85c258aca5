"""Whatever raises inside a change of the training, it is whole or had never begun: users' parts, interrupts, bad states."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper.errors import GraftFailed
from esper.kasmina import SeedState, placement_of, topology
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.snapshot import Subject
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.zoo import ZOO
from tests.laws.support import kernel_for
from tests.laws.training import COMBINATIONS, Training, reseed, stock


class Faulty:
    """A part of the user that follows and has a state, and raises where it is told to."""

    def __init__(self) -> None:
        self.raises: dict[str, BaseException] = {}
        self.value = 0

    def follow(self) -> None:
        self._may_raise("follow")

    def state_dict(self) -> dict[str, Any]:
        self._may_raise("state_dict")
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._may_raise("load_state_dict")
        self.value = state_dict["value"]

    def _may_raise(self, name: str) -> None:
        if name in self.raises:
            raise self.raises[name]


def operated() -> tuple[Training, Faulty, Surgeon]:
    training, faulty = Training(ZOO["resnet"], COMBINATIONS[3]), Faulty()
    reseed(3)
    training.train(3)
    plain = training.subject
    subject = Subject(plain.model, plain.optimizer, plain.schedule, (faulty, *plain.others), (faulty,))
    return training, faulty, Surgeon(subject, snapshots_held=2, tolerance=1e-6)


def graft(training: Training, surgeon: Surgeon, *, slot: int = 0, key: str = "join") -> Cut:
    cut = Cut(training.slots[slot], 0)
    data, kernel_id = kernel_for(training.model, cut.slot, "gated_conv")
    surgeon.graft(cut, data, kernel_id=kernel_id, key=key, seen=None)
    return cut


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()], ids=repr)
def test_a_follower_that_keeps_raising_does_not_leave_half_a_graft(error: BaseException) -> None:
    training, faulty, surgeon = operated()
    before = training.picture()
    faulty.raises["follow"] = error
    with pytest.raises(GraftFailed if isinstance(error, Exception) else type(error)):
        graft(training, surgeon)
    assert not training.picture().differences(before)
    assert not surgeon.held
    assert training.schedule.get_last_lr() == [group["lr"] for group in training.optimizer.param_groups]


@pytest.mark.parametrize("part", ["follow", "load_state_dict"])
@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()], ids=repr)
def test_a_rollback_that_fails_leaves_the_training_as_it_was_and_can_be_tried_again(
    part: str, error: BaseException
) -> None:
    training, faulty, surgeon = operated()
    wanted = training.picture()
    graft(training, surgeon)
    faulty.value = 7
    training.train(2)
    before = training.picture()
    faulty.raises[part] = error
    with pytest.raises(type(error)):
        surgeon.roll_back("join")
    assert not training.picture().differences(before)
    assert faulty.value == 7
    faulty.raises.clear()
    assert surgeon.roll_back("join")
    assert not training.picture().differences(wanted)


@pytest.mark.parametrize("put_back", [True, False])
def test_a_cull_that_fails_leaves_the_training_as_it_was_and_can_be_tried_again(put_back: bool) -> None:
    training, faulty, surgeon = operated()
    cut = graft(training, surgeon)
    training.train(2)
    before = training.picture()
    faulty.raises["follow"] = RuntimeError("planted")
    with pytest.raises(RuntimeError, match="planted"):
        surgeon.cull(cut, key="join", put_back=put_back)
    assert not training.picture().differences(before)
    faulty.raises.clear()
    assert surgeon.cull(cut, key="join", put_back=put_back) is put_back
    assert not topology(training.model)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock(tmp_path_factory.mktemp("runs"))


def attached(root: Path, **changes: Any) -> tuple[Training, Growth]:
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    reseed(3)
    return training, training.attach(root, **changes)


def test_an_interrupt_in_a_graft_does_not_cost_the_slot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, growth = attached(root)
    with growth:
        training.train(5, growth)
        slot = training.slots[0]
        before = training.picture()

        def interrupted() -> dict[str, Any]:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(training.loader, "state_dict", interrupted)
            with pytest.raises(KeyboardInterrupt):
                growth.graft(slot, "gated_conv")
        assert not training.picture().differences(before)
        assert placement_of(training.model).seeds[slot, 0].state is SeedState.EMBARGOED
        assert growth.events[-1].kind.value == "cancelled"
        training.train(24, growth)
        growth.graft(slot, "gated_conv")


def spoilt(state: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    state = copy.deepcopy(state)
    change(state)
    return state


SPOILT: dict[str, Callable[[dict[str, Any]], object]] = {
    "an event of another kind": lambda s: s.update(events=[{"kind": "dance", "evidence": []}]),
    "a state= that does not load": lambda s: s["training"]["others"].__setitem__(0, {}),
    "no engine": lambda s: s.pop("engine"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_state_that_does_not_load_leaves_the_run_as_it_was(fault: str, root: Path) -> None:
    other, growth = attached(root)
    with growth:
        other.train(5, growth)
        growth.graft(other.slots[1], "gated_conv")
        other.train(2, growth)
        state = growth.state_dict()
    training, growth = attached(root)
    with growth:
        training.train(6, growth)
        event = growth.graft(training.slots[0], "gated_conv")
        training.train(3, growth)
        before, book, events = training.picture(), growth.state_dict(), list(growth.events)
        with pytest.raises(Exception):  # noqa: B017, PT011
            growth.load_state_dict(spoilt(state, SPOILT[fault]))
        assert not training.picture().differences(before)
        assert list(growth.events) == events
        now = growth.state_dict()
        assert now["trials"]["position"] == book["trials"]["position"]
        assert now["trials"]["seeds"] == book["trials"]["seeds"]
        assert now["spent_steps"] == book["spent_steps"]
        training.train(2, growth)
        growth.rollback(event)
        assert not topology(training.model)
