"""Checkpoints of the trainer: resumed at any step a growing run ends as the unbroken one did (law 5)."""

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from esper.errors import ConfigError, NotFound
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint
from esper.services.tolaria.trainer import Checkpoints, TolariaTrainer, TrainerConfig, TrainingReport
from esper.testing.controllers import GraftAt
from tests.unit.tolaria.trainer.support import config, data, held_out, host, loader, same, weights


class Noisy(torch.utils.data.Dataset[Any]):
    """Examples with augmentation, so that the generators of workers matter."""

    def __init__(self) -> None:
        self._data = data(48)

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        x, y = self._data[index]
        return x + 0.05 * torch.randn(2), y


def growing(root: Path, **changes: Any) -> TrainerConfig:
    """Return settings of two epochs of six steps with a graft at step 6 and its verdict at the end."""
    arguments: dict[str, Any] = {
        "every": 3, "controller": GraftAt(1), "attach": {"late": "wait"}, "metrics": ("accuracy",), "log_every": 5,
        "checkpoints": Checkpoints(every_steps=1, keep_last=99), **changes,
    }  # fmt: skip
    return config(root, **arguments)


def batches(num_workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=num_workers)


def story(report: TrainingReport) -> list[tuple[int, str, str, str]]:
    return [(event.step, event.kind.value, event.slot, event.blueprint) for event in report.events]


def expect_equal(report: TrainingReport, model: nn.Module, wanted: TrainingReport, weight: dict[str, Tensor]) -> None:
    assert same(weights(model), weight)
    assert story(report) == story(wanted)
    for name in ("losses", "validations", "best", "best_step", "steps"):
        assert getattr(report, name) == getattr(wanted, name), name


def paths(report: TrainingReport) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    assert report.folder is not None
    manager = CheckpointManager(report.folder / "checkpoints", keep_last=99)
    found = manager.paths()[::-1]
    manager.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"precision": "float16", "accumulate": 2, "every": 2}], ids=["plain", "mixed"])
def test_a_growing_run_resumed_at_every_step_ends_as_the_unbroken_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, settings = host(), growing(tmp_path, **changes)
    wanted = TolariaTrainer(settings).fit(model, batches(), held_out())
    assert "grafted" in [kind for _, kind, _, _ in story(wanted)]
    whole, weight = [path for path in paths(wanted) if "before" not in path.name], weights(model)
    assert len(whole) == wanted.steps
    for path in whole:
        other = host(seed=7)
        report = TolariaTrainer(replace(settings, resume=path)).fit(other, batches(), held_out())
        expect_equal(report, other, wanted, weight)


def test_a_resumed_run_is_exact_with_workers_in_mid_epoch_and_mid_blend(tmp_path: Path) -> None:
    model, settings = host(), growing(tmp_path)
    wanted = TolariaTrainer(settings).fit(model, batches(), held_out())
    whole = [path for path in paths(wanted) if "before" not in path.name]
    other = host(seed=7)
    resumed = TolariaTrainer(replace(settings, resume=whole[7])).fit(other, batches(num_workers=2), held_out())
    expect_equal(resumed, other, wanted, weights(model))
    assert resumed.run_id != wanted.run_id


def test_the_state_before_a_graft_is_kept_and_has_no_graft(tmp_path: Path) -> None:
    settings = growing(tmp_path)
    wanted = TolariaTrainer(settings).fit(host(), batches(), held_out())
    [before] = [path for path in paths(wanted) if "before-graft" in path.name]
    state = read_checkpoint(before)
    assert state["training"]["entries"] == []
    assert state["trials"]["position"]["step"] == 6
    model = host(seed=7)
    report = TolariaTrainer(replace(settings, resume=before)).fit(model, batches(), held_out())
    assert "grafted" not in [kind for _, kind, _, _ in story(report)], "who resumes there decides anew"
    assert [found.step for found in report.validations] == [6, 12], "what the step still owed is done"
    assert report.validations[0] != wanted.validations[0] or report.losses[0] == wanted.losses[0]
    assert report.steps == 12


async def test_a_cancelled_run_goes_on_from_the_latest_checkpoint(tmp_path: Path) -> None:
    class Waiting(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.layers = host(seed)
            self.count = 0
            self.begun, self.go_on = threading.Event(), threading.Event()

        def forward(self, x: Tensor) -> Tensor:
            self.count += self.training
            if self.count == 4:
                self.begun.set()
                self.go_on.wait(60)
            outputs: Tensor = self.layers(x)
            return outputs

    settings = config(tmp_path / "whole", max_steps=9)
    straight = Waiting(0)
    straight.go_on.set()
    wanted = TolariaTrainer(settings).fit(straight, batches(), held_out())

    settings = replace(settings, root=str(tmp_path / "broken"))
    first, second = Waiting(0), Waiting(1)
    task = asyncio.create_task(TolariaTrainer(settings).train(first, batches(), held_out()))
    await asyncio.to_thread(first.begun.wait, 60)
    task.cancel()
    await asyncio.sleep(0.05)
    first.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    second.go_on.set()
    report = await TolariaTrainer(replace(settings, resume="latest")).train(second, batches(), held_out())
    assert first.count == 4
    assert second.count == 5
    assert same(weights(second), weights(straight))
    assert report.losses == wanted.losses


def test_the_best_is_kept_beside_the_last(tmp_path: Path) -> None:
    settings = config(tmp_path, num_epochs=4, checkpoints=Checkpoints(keep_last=1))
    report = TolariaTrainer(settings).fit(host(), loader(), held_out())
    assert report.folder is not None
    assert report.checkpoint is not None
    manager = CheckpointManager(report.folder / "checkpoints")
    assert manager.load("best")["spent_steps"] == report.best_step
    assert manager.load("latest")["spent_steps"] == report.steps
    manager.close()


def test_a_checkpoint_that_cannot_be_written_is_counted_and_stops_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sabotage(outputs: Tensor, targets: Tensor) -> Tensor:
        for folder in filter(Path.is_dir, tmp_path.glob("*/checkpoints")):
            shutil.rmtree(folder)
            folder.write_text("a file where the folder was")
        return torch.zeros(len(targets))

    settings = config(
        tmp_path, metrics={"sabotage": sabotage}, progress=True, checkpoints=Checkpoints(asynchronous=False)
    )  # fmt: skip
    report = TolariaTrainer(settings).fit(host(), loader(), held_out())
    assert report.steps == 16
    assert report.checkpoint_failures >= 1
    assert "a checkpoint is missing" in capsys.readouterr().out


def test_nothing_is_written_where_none_are_wanted(tmp_path: Path) -> None:
    report = TolariaTrainer(config(tmp_path, checkpoints=None, max_steps=4)).fit(host(), loader(), held_out())
    assert report.checkpoint is None
    assert not list(tmp_path.glob("*/checkpoints"))


def test_resuming_from_nothing_or_from_something_else_is_refused(tmp_path: Path) -> None:
    for which in ("latest", tmp_path / "nowhere"):
        with pytest.raises(NotFound, match="ESP-5040"):
            TolariaTrainer(config(tmp_path, resume=which)).fit(host(), loader(), held_out())
    manager = CheckpointManager(tmp_path / "own")
    path = manager.save({"version": 1}, step=3)
    manager.close()
    with pytest.raises(ConfigError, match="ESP-2711"):
        TolariaTrainer(config(tmp_path, resume=path)).fit(host(), loader(), held_out())
