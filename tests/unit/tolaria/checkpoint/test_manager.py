"""Saving now and beside the training, what is kept, what is loaded, and what is said of damage."""

import asyncio
import json
import logging
import shutil
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.errors import ConfigError, ContractError, NotFound, StoreUnavailable
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint
from esper.services.tolaria.checkpoint.folder import write_checkpoint
from esper.services.tolaria.checkpoint.manifest import read_manifest
from esper.services.tolaria.checkpoint.sealed import MOST_BYTES
from esper.services.tolaria.checkpoint.shelf import LOCK, Shelf
from esper.services.tolaria.checkpoint.tensors import read_tensors
from tests.laws.training import equal


def state(number: float) -> dict[str, Any]:
    return {"step": int(number), "weights": torch.full((100,), float(number))}


def steps(manager: CheckpointManager) -> list[int]:
    return [read_manifest(path).step for path in manager.paths()]


def test_the_last_the_best_and_those_of_each_tag_are_kept(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=2, keep_best=1, keep_tagged=2)
    for step, metric in enumerate([0.9, 0.1, float("nan"), 0.5, None, 0.7]):
        manager.save(state(step), step=step, metric=metric)
        manager.save(state(step), step=step, tag="before-graft")
    assert steps(manager) == [5, 5, 4, 4, 1]
    assert manager.load("best")["step"] == 1
    assert manager.load()["step"] == 5


def test_the_mode_says_which_metric_is_the_best(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=1, keep_best=2, mode="max")
    for step, metric in enumerate([0.3, float("inf"), 0.9, 0.9, 0.1]):
        manager.save(state(step), step=step, metric=metric)
    assert steps(manager) == [4, 3, 2]
    assert manager.load("best")["step"] == 3


def test_the_newest_is_the_one_written_last_though_a_rollback_set_the_step_back(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    for step in (40, 20):
        manager.save(state(step), step=step)
    assert CheckpointManager(tmp_path).load()["step"] == 20


def test_the_manifest_names_files_digests_and_grafts(tmp_path: Path) -> None:
    grafts = [{"slot": "layer1", "seed_idx": 0, "ir": "{}"}]
    path = CheckpointManager(tmp_path).save({"training": {"entries": grafts}}, step=3, metric=0.25, tag="end")
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert (manifest["version"], manifest["step"], manifest["metric"], manifest["tag"]) == (1, 3, 0.25, "end")
    assert manifest["grafts"] == grafts
    assert set(manifest["files"]) == {"structure.json", "tensors.safetensors"}
    assert manifest["written_at"].endswith("+00:00")


def test_a_state_saved_beside_the_training_is_the_one_of_that_moment(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, keep_last=5) as manager:
        weights = torch.zeros(300_000)
        for step in range(4):
            manager.save({"weights": weights, "step": step}, step=step, blocking=False)
            weights += 1
        manager.wait()
        for path in manager.paths():
            loaded = read_checkpoint(path)
            assert torch.equal(loaded["weights"], torch.full((300_000,), float(loaded["step"])))
        assert len(manager.paths()) == 4


def test_a_second_save_waits_for_the_first_and_counts_that(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        held = threading.Event()
        with Shelf(tmp_path, manager._shelf.retention)._locked(LOCK, alone=True) as alone:
            assert alone  # the writer cannot begin
            manager.save(state(1), step=1, blocking=False)
            threading.Timer(0.2, held.set).start()
            assert not manager.paths()
            saving = threading.Thread(target=lambda: manager.save(state(2), step=2, blocking=False))
            saving.start()
            assert held.wait(5)
        saving.join()
        manager.wait()
        assert manager.waits == 1
        assert steps(manager) == [2, 1]


class Interrupted(Future[None]):
    """A write under way while whose end is waited for, somebody presses Ctrl-C once."""

    def __init__(self, own: "Future[None]") -> None:
        super().__init__()
        self._presses = 1
        own.add_done_callback(lambda _: self.set_result(None))

    @property
    def _condition(self) -> Any:
        if self._presses and threading.current_thread() is threading.main_thread():
            self._presses -= 1
            raise KeyboardInterrupt
        return self._own_condition

    @_condition.setter
    def _condition(self, condition: Any) -> None:
        self._own_condition = condition


def test_an_interrupt_of_the_wait_does_not_let_the_next_save_change_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()

    def slowly(*given: Any) -> None:
        assert may_write.wait(5)
        write_checkpoint(*given)

    monkeypatch.setattr("esper.services.tolaria.checkpoint.manager.write_checkpoint", slowly)
    with CheckpointManager(tmp_path) as manager:
        manager.save({"weights": torch.zeros(1000)}, step=1, blocking=False)
        assert manager._writing is not None
        manager._writing = Interrupted(manager._writing)
        with pytest.raises(KeyboardInterrupt):
            manager.wait()
        threading.Timer(0.2, may_write.set).start()
        manager.save({"weights": torch.ones(1000)}, step=2, blocking=False)
        manager.wait()
        newest, oldest = (read_checkpoint(path)["weights"] for path in manager.paths())
        assert oldest.sum() == 0
        assert newest.sum() == 1000


def test_what_somebody_reads_is_removed_only_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = CheckpointManager(tmp_path, keep_last=1), CheckpointManager(tmp_path, keep_last=1)
    writer.save(state(1), step=1)

    def meanwhile(*given: Any) -> Any:
        writer.save(state(2), step=2)
        return read_tensors(*given)

    with monkeypatch.context() as patched:
        patched.setattr("esper.services.tolaria.checkpoint.folder.read_tensors", meanwhile)
        assert equal(reader.load(), state(1))
    assert reader.fallbacks == 0
    writer.save(state(3), step=3)
    assert steps(writer) == [3]


def test_a_write_that_fails_beside_the_training_is_raised_at_the_next_call(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "gone")
    manager.save(state(1), step=1)
    shutil.rmtree(tmp_path / "gone")
    manager.save(state(2), step=2, blocking=False)
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        manager.save(state(3), step=3, blocking=False)
    manager.close()
    (tmp_path / "gone").mkdir()
    manager.save(state(4), step=4, blocking=False)
    assert manager.load()["step"] == 4
    manager.close()


def test_the_coroutine_writes_off_the_loops_thread(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    path = asyncio.run(manager.save_checkpoint(state(7), metric=1.0))
    assert read_manifest(path).step == 7
    assert equal(manager.load("best"), state(7))


def damage(path: Path, kind: str) -> str:
    """Damage a checkpoint and return what its error must tell."""
    if kind == "missing":
        (path / "tensors.safetensors").unlink()
        return r"tensors\.safetensors.*missing"
    if kind == "truncated":
        data = (path / "structure.json").read_bytes()
        (path / "structure.json").write_bytes(data[: len(data) // 2])
        return r"structure\.json.*bytes"
    if kind == "changed":
        data = bytearray((path / "tensors.safetensors").read_bytes())
        data[-3] ^= 1
        (path / "tensors.safetensors").write_bytes(data)
        return r"tensors\.safetensors.*digest"
    if kind == "huge":
        (path / "manifest.json").write_bytes(b" " * (MOST_BYTES + 1))
        return r"manifest\.json.*bytes"
    text = (path / "manifest.json").read_text().replace('"step": 2', '"step": 3')
    (path / "manifest.json").write_text(text)
    return r"manifest\.json.*digest"


@pytest.mark.parametrize("kind", ["missing", "truncated", "changed", "huge", "edited"])
def test_a_damaged_checkpoint_is_named_and_latest_falls_back_and_says_so(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(tmp_path)
    for step in (1, 2):
        path = manager.save(state(step), step=step)
    told = damage(path, kind)
    with pytest.raises(ContractError, match=told):
        manager.load(path)
    with caplog.at_level(logging.WARNING, "esper"):
        assert manager.load()["step"] == 1
    assert manager.fallbacks == 1
    assert any("checkpoint_passed_over" in str(record.msg) for record in caplog.records)


def test_a_manifest_of_the_future_is_refused_and_never_passed_over(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    for step in (1, 2):
        path = manager.save(state(step), step=step)
    text = (path / "manifest.json").read_text().replace('"version": 1', '"version": 2')
    (path / "manifest.json").write_text(text)
    for which in ("latest", path):
        with pytest.raises(ContractError, match=r"version 2.*reads version 1"):
            manager.load(which)


def test_where_nothing_is_whole_the_error_says_so(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    with pytest.raises(NotFound, match="has none"):
        manager.load()
    with pytest.raises(NotFound, match="finite metric"):
        manager.load("best")
    path = manager.save(state(1), step=1)
    with pytest.raises(NotFound, match=path.name):
        manager.load("00000009-step-9")
    damage(path, "missing")
    with pytest.raises(NotFound, match="none of 1 is whole"):
        manager.load()


def test_what_a_crash_left_is_swept_but_not_what_another_process_writes(tmp_path: Path) -> None:
    for name in (".writing-0123", ".removing-0123"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.safetensors").write_bytes(b"half")
    first = CheckpointManager(tmp_path)
    assert first.swept == 2
    (tmp_path / ".writing-0123").mkdir()
    with first._shelf.writing():
        assert CheckpointManager(tmp_path).swept == 0
        assert (tmp_path / ".writing-0123").exists()
    assert CheckpointManager(tmp_path).swept == 1


@pytest.mark.parametrize(
    "settings", [{"keep_last": 0}, {"keep_best": -1}, {"keep_tagged": 0}, {"mode": "least"}, {"keep_last": 1.5}]
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ESP-2181"):
        CheckpointManager(tmp_path, **settings)


@pytest.mark.parametrize("labels", [{"step": -1}, {"step": 1.5}, {"step": 1, "tag": "../x"}, {"step": 1, "tag": "A b"}])
def test_labels_that_cannot_be_used_are_refused(labels: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ESP-2181"):
        CheckpointManager(tmp_path).save(state(1), **labels)
