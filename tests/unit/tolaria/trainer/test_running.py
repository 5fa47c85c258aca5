"""A run from outside: settings, validation, early stopping, seeds, progress, awaiting and interrupting."""

import asyncio
import io
import os
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina.quiet import capture_rng
from esper.services.tolaria.trainer import Clipping, Stopping, TolariaTrainer, TrainerConfig, Validation
from esper.services.tolaria.trainer.determinism import seeded
from esper.services.tolaria.trainer.progress import Bar, Lines, Silent, progress_for
from esper.services.tolaria.trainer.stopping import Best
from tests.unit.tolaria.trainer.support import config, data, held_out, host, loader, same, weights


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"optimizer": "adamx"}, "adamw"),
        ({"schedule": "cosin"}, "warmup_cosine"),
        ({"schedule": 3}, "name or a function"),
        ({"precision": "float8"}, "bfloat16"),
        ({"metrics": ("acuracy",)}, 'did you mean "accuracy"'),
        ({"validation": Validation(monitor="accuracy")}, "monitor='accuracy'"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"learning_rate": 0.0}, "positive"),
        ({"tamiyo_url": "http://tamiyo:8000"}, r"ESP-2710.*controller="),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_refused_before_anything_starts(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TolariaTrainer(TrainerConfig(**changes))


def test_parts_refuse_their_own_bad_values() -> None:
    for make in (
        lambda: Stopping(patience=0), lambda: Stopping(min_delta=-1), lambda: Validation(every_steps=0),
        lambda: Validation(mode="best"), lambda: Validation(every_epochs=0), lambda: Clipping(norm=0.0),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="ESP-2700"):
            make()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ESP-2705"):
        TolariaTrainer(config(tmp_path, device="cuda:99")).fit(host(), loader(), held_out())


def test_metrics_are_measured_on_the_users_own_loader(tmp_path: Path) -> None:
    model, aside = host(), held_out()
    report = TolariaTrainer(config(tmp_path, metrics=("accuracy",))).fit(model, loader(), aside)
    assert [found.step for found in report.validations] == [8, 16]
    inputs, labels = data(24, seed=1).tensors
    with torch.no_grad():
        logits = model.eval()(inputs)
    assert report.validations[-1].values == {
        "loss": pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5),
        "accuracy": pytest.approx(float((logits.argmax(1) == labels).float().mean())),
    }


def test_validation_may_come_by_steps_and_the_run_by_steps_too(tmp_path: Path) -> None:
    settings = config(tmp_path, max_steps=11, validation=Validation(every_steps=5))
    report = TolariaTrainer(settings).fit(host(), loader(), held_out())
    assert [found.step for found in report.validations] == [5, 10]
    assert report.steps == 11
    assert len(report.losses) == 2, "a whole epoch, and what was begun of the second"


def test_the_best_is_remembered_in_either_direction() -> None:
    values = [3.0, 2.0, float("nan"), 2.5, 1.95]
    low, high, coarse = Best("min"), Best("max"), Best("min", min_delta=0.1)
    assert [low.take(value, step) for step, value in enumerate(values)] == [True, True, False, False, True]
    assert [high.take(value, step) for step, value in enumerate(values)] == [True, False, False, False, False]
    assert [coarse.take(value, step) for step, value in enumerate(values)] == [True, True, False, False, False]
    assert (low.value, low.step, low.waited) == (1.95, 4, 0)
    assert (coarse.value, coarse.waited) == (2.0, 3)
    resumed = Best("min", min_delta=0.1)
    resumed.load_state_dict(coarse.state_dict())
    assert vars(resumed) == vars(coarse)


def test_a_run_that_gets_no_better_stops_early(tmp_path: Path) -> None:
    def unmoved(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros(len(targets))

    settings = config(
        tmp_path, num_epochs=9, metrics={"unmoved": unmoved}, validation=Validation(monitor="unmoved"),
        stopping=Stopping(patience=2),
    )  # fmt: skip
    report = TolariaTrainer(settings).fit(host(), loader(), held_out())
    assert report.ended == "stopped early"
    assert (report.steps, report.best_step) == (3 * 8, 8)
    assert TolariaTrainer(replace(settings, stopping=None)).fit(host(), loader(), held_out()).ended == "finished"


def test_equal_seeds_give_equal_runs_and_the_callers_generators_are_left_alone(tmp_path: Path) -> None:
    found = []
    for salt, seed in ((1, 0), (2, 0), (3, 5)):
        torch.manual_seed(salt)
        random.seed(salt)
        before, model = capture_rng(), host()
        TolariaTrainer(config(tmp_path, seed=seed, deterministic=True)).fit(model, loader(), held_out())
        after = capture_rng()
        assert torch.equal(before.cpu, after.cpu)
        assert before.python == after.python
        found.append(weights(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_algorithms_are_demanded_inside_alone() -> None:
    with seeded(0, deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="mine"), seeded(0, deterministic=True):
        raise ValueError("mine")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_bar_is_for_terminals_and_lines_are_for_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, terminal = io.StringIO(), io.StringIO()
    lines = progress_for(True, steps=5, console=Console(file=plain))
    assert type(lines) is Lines
    with lines:
        lines.step(1, 0)
        lines.say("step 1: [grafted]")
    assert plain.getvalue() == "step 1: [grafted]\n"
    monkeypatch.setenv("NO_COLOR", "1")
    bar = progress_for(True, steps=5, console=Console(file=terminal, force_terminal=True, width=80))
    assert type(bar) is Bar
    with bar:
        bar.step(3, 1)
        bar.say("hello")
    shown = terminal.getvalue()
    assert "3/5" in shown
    assert "epoch 2" in shown
    assert "hello" in shown
    assert "\x1b[3" not in shown, "NO_COLOR: no colours"
    assert type(progress_for(False, steps=5)) is Silent


class Slow(nn.Module):
    """Takes its time; counts its training steps and can be waited for."""

    def __init__(self, pause_s: float = 0.02) -> None:
        super().__init__()
        self.layers = host()
        self.steps = 0
        self.third = threading.Event()
        self._pause = threading.Event()
        self._pause_s = pause_s

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            if self.steps == 3:
                self.third.set()
            self._pause.wait(self._pause_s)
        outputs: Tensor = self.layers(x)
        return outputs


async def test_a_heartbeat_goes_on_while_training_is_awaited(tmp_path: Path) -> None:
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(heart())
    report = await TolariaTrainer(config(tmp_path)).train(Slow(), loader(), held_out())
    beating.cancel()
    assert report.steps == 16
    assert beats > 10


async def test_cancelling_ends_training_after_its_present_step(tmp_path: Path) -> None:
    model = Slow()
    task = asyncio.create_task(TolariaTrainer(config(tmp_path, num_epochs=99)).train(model, loader(), held_out()))
    await asyncio.to_thread(model.third.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    steps = model.steps
    assert steps < 99
    await asyncio.sleep(0.1)
    assert model.steps == steps, "nothing trains any more"
    assert not hasattr(model, "_esper_placement") or vars(model)["_esper_placement"].grower is None


def test_an_interrupt_ends_training_after_its_present_step(tmp_path: Path) -> None:
    model = Slow()

    def interrupt(outputs: Tensor, targets: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return torch.zeros(len(targets))

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        TolariaTrainer(config(tmp_path, num_epochs=99, metrics={"interrupt": interrupt})).fit(
            model, loader(), held_out(12)
        )
    assert model.steps == 8, "the validation after the first epoch was ended, and nothing after it was begun"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_rehearsal_meets_everything_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = host()
    before, rng = weights(model), torch.get_rng_state()
    settings = config(tmp_path / "runs", fast_dev_run=True, metrics=("accuracy",), num_epochs=50, progress=True)
    report = TolariaTrainer(settings).fit(model, loader(), held_out(120))
    assert [event.kind.value for event in report.events][:1] == ["grafted"]
    assert report.validations
    assert report.steps == 4
    assert report.folder is None
    assert not list(tmp_path.iterdir())
    assert same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert "grafted" in capsys.readouterr().out


def test_a_rehearsal_finds_the_mistake_that_a_long_run_would_meet_late(tmp_path: Path) -> None:
    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError("a metric of mine")

    settings = config(tmp_path, fast_dev_run=True, metrics={"broken": broken}, num_epochs=50)
    with pytest.raises(ZeroDivisionError):
        TolariaTrainer(settings).fit(host(), loader(), held_out())
