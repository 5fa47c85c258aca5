"""Loggers by name with the real libraries, offline; one that fails stops nobody."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from esper.errors import ConfigError
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.trainer import TolariaTrainer, TrainerConfig
from esper.services.tolaria.trainer.loggers.base import Loggers
from esper.services.tolaria.trainer.loggers.lines import JsonLines
from esper.services.tolaria.trainer.loggers.named import open_loggers
from tests.unit.tolaria.trainer.support import config, held_out, host, loader

EVENT = GrowthEvent(step=7, kind=EventKind.GRAFTED, why="planted", slot="layer3", blueprint="gated_mlp")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


def written(name: str, folder: Path) -> None:
    """Log through a logger by name as a run does."""
    loggers = Loggers(open_loggers([name], folder=folder, run_id="run-1"))
    loggers.log({"train/loss": 0.5, "train/learning_rate": 0.25}, 7)
    loggers.event(EVENT)
    loggers.close()
    assert loggers.failures == {}


def test_tensorboard_has_scalars_and_events(tmp_path: Path) -> None:
    written("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(point.step, point.value) for point in found.Scalars("train/loss")] == [(7, 0.5)]
    text = found.Tensors("growth/grafted/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == str(EVENT)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep wandb on this machine and in this folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.mark.slow
def test_wandb_has_metrics_and_a_table_of_events(tmp_path: Path, offline: None) -> None:
    written("wandb", tmp_path)
    [file] = (tmp_path / "wandb").rglob("run-*.wandb")
    deadline = time.monotonic() + 60
    while b"growth/events" not in (content := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)  # wandb's own process writes it
    assert b"train/loss" in content
    assert b"growth/grafted" in content
    [table] = (tmp_path / "wandb").rglob("events*.table.json")
    assert json.loads(table.read_text())["data"] == [[7, "grafted", "layer3", "gated_mlp", str(EVENT)]]


@pytest.mark.slow
def test_mlflow_has_metrics_and_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    written("mlflow", tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("esper")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["train/loss"] == 0.5
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [7]
    assert run.data.tags["growth.0000.grafted"] == str(EVENT)
    assert run.info.status == "FINISHED"


def test_the_runs_own_log_has_a_line_per_step_and_names_what_is_not_finite(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.log({"loss": 0.5}, 1)
    log.log({"loss": math.nan}, 2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan"}]


class Failing:
    """Fails on every call; ``heard`` counts them."""

    def __init__(self) -> None:
        self.heard = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.heard += 1
        raise OSError("disk full")


class Keeping:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(metrics)))


def test_a_logger_that_fails_is_counted_and_stops_nobody(tmp_path: Path) -> None:
    failing, keeping = Failing(), Keeping()
    settings = config(tmp_path, loggers=(failing, keeping), log_every=4, metrics=("accuracy",))
    report = TolariaTrainer(settings).fit(host(), loader(), held_out())
    assert report.steps == 16
    assert report.log_failures == {"Failing": failing.heard}
    assert [step for step, _ in keeping.metrics] == [4, 8, 8, 12, 16, 16]
    assert set(keeping.metrics[2][1]) == {"validation/loss", "validation/accuracy"}
    assert keeping.metrics[0][1]["train/loss"] > 0
    assert report.folder is not None
    lines = [json.loads(line) for line in (report.folder / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **values} for step, values in keeping.metrics] == lines


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'ESP-2163.*did you mean "wandb"'):
        TolariaTrainer(TrainerConfig(loggers=("wand",)))
    with pytest.raises(ConfigError, match="ESP-2708"):
        TolariaTrainer(TrainerConfig(loggers=(object(),)))  # type: ignore[arg-type]
