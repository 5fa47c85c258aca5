"""A twin as control: it is the training without the graft, it decides where before and after mislead, and it touches nothing."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.errors import ConfigError
from esper.kasmina.quiet import capture_rng
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.trainer import Checkpoints, TolariaTrainer, TrainerConfig, TrainingReport, Validation
from esper.services.tolaria.trainer.clipping import Clipping
from esper.services.tolaria.trainer.objective import Objective
from esper.services.tolaria.trainer.precision import Precision
from esper.services.tolaria.trainer.stepping import Stepper
from esper.services.tolaria.twin import Twin
from esper.testing.controllers import GraftAt, Silent
from tests.unit.tolaria.trainer.support import config, data, held_out, host, loader, same, weights

EVERY = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One library for the module: a kernel is compiled once."""
    return tmp_path_factory.mktemp("runs")


def grafts(model: nn.Module) -> int:
    return sum(name.endswith(".kernel") for name, _ in model.named_modules())


class Clocked(nn.Module):
    """Knows how many training steps it has seen."""

    ticks: Tensor

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = host(dropout=dropout)
        self.register_buffer("ticks", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.ticks += 1
        outputs: Tensor = self.layers(x)
        return outputs


def settings(root: Path, **changes: Any) -> TrainerConfig:
    """Return settings of twelve boundaries with a graft at the fifth."""
    arguments: dict[str, Any] = {
        "num_epochs": 6, "every": EVERY, "learning_rate": 1e-3, "controller": GraftAt(4), "attach": {"late": "wait"},
        "control": "twin", **changes,
    }  # fmt: skip
    return config(root, **arguments)


def trained(root: Path, model: nn.Module | None = None, **changes: Any) -> TrainingReport:
    return TolariaTrainer(settings(root, **changes)).fit(model or host(), loader(), held_out())


def verdicts(report: TrainingReport) -> list[GrowthEvent]:
    return [event for event in report.events if event.kind in (EventKind.KEPT, EventKind.CULLED)]


def history(report: TrainingReport) -> dict[int, float]:
    """Return the held-out loss at each boundary, by step."""
    assert report.checkpoint is not None
    points = read_checkpoint(report.checkpoint)["trials"]["position"]["history"]
    return {point["step"]: point["validation"] for point in points}


def planted(trend: str, effect: float) -> Any:
    """Return a loss whose held-out part moves by itself, and is moved by each graft."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        losses = cross_entropy(model(batch[0]), batch[1], reduction="none")
        if model.training:
            return losses
        ticks = float(model.ticks)  # type: ignore[arg-type]
        moved = -0.2 * ticks if trend == "falling" else 0.01 * math.exp(0.2 * ticks)
        return losses + moved + effect * grafts(model)

    return loss


@pytest.mark.parametrize(
    ("trend", "effect", "alone", "by_twin"),
    [("falling", 1.0, EventKind.KEPT, EventKind.CULLED), ("rising", -1.0, EventKind.CULLED, EventKind.KEPT)],
)
def test_a_twin_sees_harm_and_use_that_the_trend_of_the_run_hides(
    trend: str, effect: float, alone: EventKind, by_twin: EventKind, root: Path
) -> None:
    loss = planted(trend, effect)
    [without] = verdicts(trained(root, Clocked(), loss=loss, control=None))
    [found] = verdicts(trained(root, Clocked(), loss=loss))
    assert without.kind is alone
    assert found.kind is by_twin
    assert found.gain == pytest.approx(-effect, abs=0.1)
    assert found.gain_error is not None
    assert abs(found.gain) > 2 * found.gain_error
    assert "that of its twin" in found.why
    assert "paired standard error" in found.why


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "float16", "accumulate": 2, "every": 2},
        {"schedule": "plateau", "validation": Validation(every_steps=3)},
    ],
    ids=["plain", "mixed", "plateau"],
)
def test_a_run_with_a_twin_is_the_run_without_it_to_the_bit(changes: dict[str, Any], root: Path) -> None:
    models, reports, ends = [host(), host()], [], []
    for control, model in zip((None, "twin"), models, strict=True):
        reports.append(trained(root, model, control=control, **changes))
        ends.append(capture_rng().cpu)
    left, right = reports
    assert [event.kind for event in left.events] == [event.kind for event in right.events]
    assert EventKind.KEPT in [event.kind for event in right.events]
    assert "twin" in verdicts(right)[0].why
    assert same(weights(models[0]), weights(models[1]))
    assert torch.equal(*ends)
    assert (left.losses, left.validations) == (right.losses, right.validations)
    assert history(left) == history(right)


@pytest.mark.parametrize("earlier", [(), (3,)], ids=["host", "host with a graft"])
def test_the_twin_is_the_training_without_the_graft(earlier: tuple[int, ...], root: Path) -> None:
    warm = {"late": "wait", "newborn_rate": esper.NewbornRate(warmup_steps=3, boost=2.0, boost_steps=30)}
    grown = trained(root, controller=GraftAt(*earlier, 8), num_epochs=8, attach=warm)
    plain = trained(root, controller=GraftAt(*earlier), num_epochs=8, attach=warm)
    kept = verdicts(grown)[-1]
    assert "that of its twin" in kept.why
    assert kept.gain == pytest.approx(history(plain)[kept.step] - history(grown)[kept.step], abs=1e-12)
    assert history(plain)[kept.step] != history(grown)[kept.step]


def test_its_operations_are_charged(root: Path) -> None:
    report = trained(root)
    [kept], [joined] = verdicts(report), [event for event in report.events if event.kind is EventKind.GRAFTED]
    steps = kept.step - joined.step
    weights_in = (2 * 8 + 8 * 8 + 8 * 2, 8 * 8 + 8 * 2)
    one_step = 2 * 8 * (2 * weights_in[0] + weights_in[1])  # forward, gradients of weights, gradients of inputs
    assert report.flops["twin"] == (steps + 1) * one_step + steps // EVERY * 2 * 24 * weights_in[0]
    assert trained(root, controller=Silent(), max_steps=EVERY).flops["twin"] == 0
    assert "twin" not in trained(root, control=None, max_steps=EVERY).flops


def test_a_run_resumed_beside_its_twin_ends_as_the_unbroken_one(root: Path) -> None:
    whole = settings(root, checkpoints=Checkpoints(every_steps=1, keep_last=99))
    model = host()
    wanted = TolariaTrainer(whole).fit(model, loader(), held_out())
    [kept] = verdicts(wanted)
    assert wanted.folder is not None
    manager = CheckpointManager(wanted.folder / "checkpoints", keep_last=99)
    states = {path: read_checkpoint(path) for path in manager.paths() if "before" not in path.name}
    manager.close()
    beside = [path for path, state in states.items() if state["engine"]["control"]["arm"]]
    assert len(beside) == 3 * EVERY
    for path in beside[2::6]:
        other = host(seed=7)
        report = TolariaTrainer(replace(whole, resume=path)).fit(other, loader(), held_out())
        [again] = verdicts(report)
        assert (again.gain, again.gain_error, again.why) == (kept.gain, kept.gain_error, kept.why)
        assert same(weights(other), weights(model))
        assert report.flops == wanted.flops


def test_where_another_graft_joins_the_twin_is_given_up_for_one_of_the_newest(root: Path) -> None:
    first, second = verdicts(trained(root, controller=GraftAt(4, 6)))
    assert "graft-free windows" in first.why
    assert "that of its twin" in second.why


def test_a_rollback_ends_the_twin(root: Path) -> None:
    model = host()
    esper.wrap(model, example=torch.zeros(4, 2))
    examples = data(24, seed=1).tensors

    def make(other: nn.Module) -> Stepper:
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        objective = Objective("cross_entropy", {}, target="labels")
        return Stepper(other, optimizer, None, objective, Precision(None, torch.device("cpu")), Clipping())

    def validate(other: nn.Module) -> Tensor:
        return cross_entropy(other(examples[0]), examples[1], reduction="none")

    twin, stepper = Twin(model, make, validate, stride=1, scaler_at=0), make(model)
    with esper.attach(
        model, stepper.optimizer, validate=validate, every=2, steps=40, budget="x99", controller=Silent(),
        control=twin, root=root,
    ) as growth:  # fmt: skip
        growth.step(stepper.step([examples]))
        grafted = growth.graft(growth.propose()[0].slot or "", growth.propose()[0].blueprint)
        held = twin.state_dict()["arm"]
        assert held["key"] == grafted.decision_id
        assert held["training"]["entries"] == []
        growth.rollback(grafted)
        assert twin.state_dict()["arm"] is None


def test_a_batch_that_the_loss_takes_apart_reaches_the_twin_whole(root: Path) -> None:
    def greedy(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0]), batch.pop(1), reduction="none")

    [kept] = verdicts(trained(root, loss=greedy))
    assert "that of its twin" in kept.why


def test_a_control_of_another_name_and_one_for_attach_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"ESP-2163.*twin"):
        TolariaTrainer(settings(root, control="twim"))
    with pytest.raises(ConfigError, match="ESP-2109"):
        trained(root, attach={"control": "twin"})


def test_a_model_that_cannot_be_copied_has_no_twin(root: Path) -> None:
    class Single(nn.Linear):
        def __deepcopy__(self, memo: Any) -> "Single":
            raise RuntimeError("there is one only")

    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), Single(8, 2))
    with pytest.raises(ConfigError, match=r"ESP-2713.*there is one only"):
        trained(root, model)
