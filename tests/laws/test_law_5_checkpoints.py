"""Law 5 through files: a run goes on from any checkpoint in fresh objects, and a state that does not fit changes nothing."""

import copy
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from esper.errors import ConfigError, EsperError
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.events import EventKind, EventLog, GrowthEvent
from esper.testing.controllers import GraftAt
from esper.testing.zoo import ZOO
from tests.laws.test_law_5_resumable import CONTROLLED, story
from tests.laws.training import COMBINATIONS, STEPS, Training, equal, reseed


def test_a_run_goes_on_from_every_checkpoint_that_was_written_beside_it(root: Path, tmp_path: Path) -> None:
    """Written in the middle of windows, between decision and join, in a blend, after verdicts."""
    first = Training(ZOO["resnet"], COMBINATIONS[3])
    with first.attach(root, **CONTROLLED) as growth, CheckpointManager(tmp_path, keep_last=99) as checkpoints:
        reseed(2)
        losses = []
        for _ in range(STEPS):
            losses += first.train(1, growth)
            if growth.spent_steps % 7 == 0:
                checkpoints.save(growth.state_dict(copy=False), step=growth.spent_steps, blocking=False)
        wanted, told = first.picture(), story(growth)
    assert sum(kind == "grafted" for _, kind, _, _ in told) == 3
    for path in checkpoints.paths()[::3]:
        second = Training(ZOO["resnet"], COMBINATIONS[3], seed=1)
        with second.attach(root, **CONTROLLED) as growth:
            growth.load_state_dict(checkpoints.load(path))
            saved_at = growth.spent_steps
            assert second.train(STEPS - saved_at, growth) == losses[saved_at:]
            assert not second.picture().differences(wanted)
            assert story(growth) == told


def test_what_did_not_change_since_a_snapshot_is_stored_once(root: Path, tmp_path: Path) -> None:
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    with training.attach(root) as growth:
        training.train(3, growth)
        plain = CheckpointManager(tmp_path / "plain").save(growth.state_dict(), step=1)
        growth.graft(training.slots[0], "gated_conv")
        held = CheckpointManager(tmp_path / "held").save(growth.state_dict(), step=1)
    sizes = [(path / "tensors.safetensors").stat().st_size for path in (plain, held)]
    assert sizes[1] < 1.4 * sizes[0]  # the state before the join is in it too, and every tensor of it is equal


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def test_a_state_that_is_handed_on_at_once_takes_no_memory_of_its_own(root: Path) -> None:
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    with training.attach(root) as growth:
        training.train(3, growth)
        training.host.loss(training.model, training.loader.next()).backward()
        lent, kept = growth.state_dict(copy=False), growth.state_dict()
        assert equal(lent, kept)
        own = {p.data_ptr() for p in training.model.parameters()} | {
            p.grad.data_ptr() for p in training.model.parameters() if p.grad is not None
        }
        own |= {t.data_ptr() for state in training.optimizer.state.values() for t in state.values() if t.ndim}
        assert own <= {tensor.data_ptr() for tensor in tensors_in(lent)}
        assert not own & {tensor.data_ptr() for tensor in tensors_in(kept)}
        training.train(1, growth)
        assert not equal(lent["training"]["tensors"], kept["training"]["tensors"])


def damage(state: dict[str, Any], where: str) -> None:
    if where == "moments":
        names = list(state["training"]["moments"])
        state["training"]["moments"]["gone"] = state["training"]["moments"].pop(names[0])
    elif where == "slot":
        state["training"]["entries"][0]["slot"] = "gone"
    else:
        del state[where]


@pytest.mark.parametrize("where", ["moments", "slot", "trials", "observer", "consultation", "engine", "events"])
def test_a_state_that_does_not_fit_leaves_the_training_as_it_was(where: str, root: Path) -> None:
    first = Training(ZOO["resnet"], COMBINATIONS[3])
    with first.attach(root) as growth:
        first.train(3, growth)
        growth.graft(first.slots[0], "gated_conv")
        first.train(2, growth)
        saved = growth.state_dict()
    second = Training(ZOO["resnet"], COMBINATIONS[3], seed=1)
    with second.attach(root) as growth:
        second.train(5, growth)
        before, picture = growth.state_dict(), second.picture()
        broken = copy.deepcopy(saved)
        damage(broken, where)
        with pytest.raises((ConfigError, EsperError)):
            growth.load_state_dict(broken)
        assert not second.picture().differences(picture)
        assert equal(growth.state_dict(), before)
        growth.load_state_dict(saved)
        assert equal(growth.state_dict()["training"], saved["training"])


def test_the_moment_before_a_graft_is_known_so_that_the_last_good_state_can_be_kept(root: Path, tmp_path: Path) -> None:
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    checkpoints = CheckpointManager(tmp_path)
    with training.attach(root, controller=GraftAt(2, 7), late="wait") as growth:
        reseed(1)
        due = []
        for step in range(1, STEPS + 1):
            growth.state_dict()  # takes the answer in
            if growth.graft_due:
                due.append(step)
                checkpoints.save(growth.state_dict(), step=growth.spent_steps, tag="before-graft")
            training.train(1, growth)
        assert due == [step for step, kind, _, _ in story(growth) if kind == "grafted"]
        assert [path.name.split("-", 1)[1] for path in checkpoints.paths()] == [
            f"step-{step - 1}-before-graft" for step in reversed(due)
        ]


def test_events_that_the_disk_refused_are_written_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    log = EventLog(path)
    log.append(GrowthEvent(1, EventKind.KEPT, "well"))
    log.append(GrowthEvent(2, EventKind.KEPT, "well"))
    assert log.unwritten == 2
    path.unlink()
    log.append(GrowthEvent(3, EventKind.KEPT, "well"))
    assert log.unwritten == 0
    assert [line.count('"step"') for line in path.read_text().splitlines()] == [1, 1, 1]
