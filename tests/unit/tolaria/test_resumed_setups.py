"""A run with an average, a scaler and a schedule goes on from a file as if it had never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import esper
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.schedules import Schedule
from esper.testing.controllers import Silent
from tests.laws.training import equal
from tests.unit.tolaria.kinds import OPTIMIZERS, SCHEDULES, advance, groups_of


class Run:
    """A small host with everything, attached."""

    def __init__(self, root: Path, optimizer: str, schedule: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 6))
        esper.wrap(self.model, ["0"], example=torch.ones(2, 6))
        self.optimizer: Optimizer = OPTIMIZERS[optimizer](groups_of(self.model))
        self.schedule: Schedule = SCHEDULES[schedule](self.optimizer)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        self.growth: Growth = esper.attach(
            self.model, self.optimizer, validate=self.losses, every=4, budget="x9", controller=Silent(),
            scheduler=self.schedule, state=(self.average, self.scaler), root=root,
            newborn_rate=esper.NewbornRate(warmup_steps=5, boost=2.0, boost_steps=4),
        )  # fmt: skip

    def losses(self, model: nn.Module) -> Tensor:
        return F.mse_loss(model(torch.ones(4, 6)), torch.zeros(4, 6), reduction="none").mean(1)

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = self.model(torch.randn(4, 6)).square().mean()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            advance(self.schedule, loss.item())
            self.average.update_parameters(self.model)
            self.growth.step(loss)

    def picture(self) -> dict[str, Any]:
        names = {id(p): n for n, p in self.model.named_parameters()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {
            "digest": self.growth.digest(),
            "average": {n: t.detach().clone() for n, t in self.average.state_dict().items()},
            "scaler": self.scaler.state_dict(),
            "groups": [{k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items()} for group in groups],
            "members": [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups],
        }


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("adamw-tensor-rate", "multi-step"), ("sgd-momentum", "cyclic"), ("own", "several")],
)
def test_a_run_resumed_from_a_file_equals_one_that_was_never_stopped(
    tmp_path: Path, optimizer: str, schedule: str
) -> None:
    files = CheckpointManager(tmp_path / "checkpoints")
    run = Run(tmp_path, optimizer, schedule)
    run.train(3)
    run.growth.graft("0", "mlp_adapter")
    run.train(3)
    files.save(run.growth.state_dict(), step=6)
    run.train(6)
    run.growth.close()
    wanted = run.picture()
    other = Run(tmp_path, optimizer, schedule)
    torch.manual_seed(99)
    other.growth.load_state_dict(files.load())
    other.train(6)
    other.growth.close()
    found = other.picture()
    assert [name for name in wanted if not equal(found[name], wanted[name])] == []


def test_a_rollback_of_an_attached_run_takes_everything_back(tmp_path: Path) -> None:
    run = Run(tmp_path, "adamw", "one-cycle")
    run.train(3)
    before = run.picture()
    event = run.growth.graft("0", "mlp_adapter")
    run.train(3)
    assert not equal(run.picture(), before)
    run.growth.rollback(event)
    run.growth.close()
    after = run.picture()
    assert [name for name in before if not equal(after[name], before[name])] == []
