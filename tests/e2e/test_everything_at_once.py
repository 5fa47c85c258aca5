"""Everything that moves with a training, in one run: saved beside the training after every step, resumed from many, to the bit.

Incubation, a rollback across it, an average, a scaler that skips steps, accumulation, clipping, a newborn's warm-up, OneCycle,
groups of equal shapes, tied weights, batch statistics, dropout, and a loader.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import esper
from esper.kasmina import SeedState, placement_of, topology
from esper.kasmina.quiet import capture_rng
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.growth import Growth
from esper.testing.controllers import Silent
from tests.laws.training import Loader, equal, reseed

WORDS, WIDTH, EVERY, STEPS = 12, 8, 4, 34
INCUBATE, GRAFT, ROLL_BACK = 6, 10, 18
"""Steps, counted as spent, after which the user acts."""
SAVED_AT = (2, 6, 7, 9, 10, 11, 13, 17, 18, 19, 23, 29)
"""Before anything, while it learns apart, right after a join, in both blends, around the rollback, after the second join."""


class Tied(nn.Module):
    """Tells the next word from the last one; what it reads with is what it writes with."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Embedding(WORDS, WIDTH)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout(0.2)
        self.write = nn.Linear(WIDTH, WORDS, bias=False)
        self.write.weight = self.read.weight

    def forward(self, words: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.a(self.norm(self.read(words)))))
        logits: Tensor = self.write(self.drop(self.b(h)))
        return logits


class Words:
    """Batches by position."""

    def __init__(self) -> None:
        self.position = 0

    def next(self) -> tuple[Tensor, Tensor]:
        self.position += 1
        words = torch.randint(WORDS, (16,), generator=torch.Generator().manual_seed(self.position))
        return words, (words * 5 + 1) % WORDS

    state_dict, load_state_dict = Loader.state_dict, Loader.load_state_dict


@dataclass
class Run:
    """The training, attached."""

    root: Path
    model: Tied = field(init=False)
    growth: Growth = field(init=False)
    losses: list[float] = field(default_factory=list)
    skipped: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = esper.wrap(Tied(), ["a", "b"], example=torch.arange(4))
        own = [list(self.model.a.parameters()), list(self.model.b.parameters())]
        rest = [self.model.read.weight, *self.model.norm.parameters()]
        groups = [{"params": own[0]}, {"params": own[1], "weight_decay": 0.1}, {"params": rest}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3)
        self.schedule = OneCycleLR(self.optimizer, max_lr=[0.02, 0.01, 0.03], total_steps=2 * STEPS)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_factor=2.0**6, growth_interval=3)
        self.words = Words()
        self.growth = esper.attach(
            self.model, self.optimizer, validate=self.held_out, every=EVERY, steps=2 * STEPS, budget="x9",
            controller=Silent(), scheduler=self.schedule, state=(self.average, self.scaler, self.words), root=self.root,
            newborn_rate=esper.NewbornRate(warmup_steps=5, boost=2.0, boost_steps=4),
        )  # fmt: skip

    def held_out(self, model: nn.Module) -> Tensor:
        words = torch.arange(WORDS)
        return cross_entropy(model(words), (words * 5 + 1) % WORDS, reduction="none")

    def step(self) -> None:
        """Train on two micro-batches, then do what the user does by hand after this step."""
        self.model.train()
        total = 0.0
        for _ in range(2):
            words, target = self.words.next()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = cross_entropy(self.model(words), target) / 2
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped += self.scaler.get_scale() < before
        self.optimizer.zero_grad()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.growth.step(total)
        self.losses.append(total)
        self._act(self.growth.spent_steps)

    def _act(self, step: int) -> None:
        if step == INCUBATE:
            self.growth.graft("a", "mlp_adapter", incubate=5)
        if step == GRAFT:
            self.growth.graft("b", "gated_mlp")
        if step == ROLL_BACK:
            self.growth.rollback(next(event for event in self.growth.events if event.slot == "b"))

    def picture(self) -> dict[str, Any]:
        """Return everything that must be equal, by its kind."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        rng = capture_rng()
        apprentices = self.growth._engine.trials.incubator.state_dict()["apprentices"]
        return {
            "digest": self.growth.digest(),
            "topology": [(entry.slot, entry.kernel_id) for entry in topology(self.model)],
            "seeds": {str(place): seed.state.value for place, seed in placement_of(self.model).seeds.items()},
            "tied": self.model.write.weight is self.model.read.weight,
            "average": {name: tensor.clone() for name, tensor in self.average.state_dict().items()},
            "scaler": self.scaler.state_dict(),
            "words": self.words.position,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups],
            "members": [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups],
            "schedule": {
                k: v
                for k, v in self.schedule.state_dict().items()
                if k != "_get_lr_called_within_step" and not callable(v)
            },
            "apprentices": [{k: v for k, v in each.items() if k != "decision"} for each in apprentices],
            "generators": [str(rng.python), str(rng.numpy), rng.cpu],
            "story": [(event.step, event.kind.value, event.slot) for event in self.growth.events],
            "position": (self.growth.spent_steps, self.growth.planned_step),
        }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@dataclass(frozen=True)
class Unbroken:
    """A run that was never stopped, and what was saved beside it."""

    files: CheckpointManager
    losses: list[float]
    pictures: dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def unbroken(root: Path) -> Iterator[Unbroken]:
    with CheckpointManager(root / "checkpoints", keep_last=2 * STEPS) as files:
        run = Run(root)
        reseed(5)
        pictures = {}
        with run.growth:
            for step in range(1, STEPS + 1):
                run.step()
                files.save(run.growth.state_dict(), step=step, blocking=False)
                if step in (*SAVED_AT, STEPS):
                    pictures[step] = run.picture()
        assert run.skipped >= 2, "the scaler must have skipped steps"
        assert [event.kind for event in run.growth.events if event.kind is not EventKind.KEPT] == [
            EventKind.INCUBATING, EventKind.GRAFTED, EventKind.GRAFTED, EventKind.ROLLED_BACK, EventKind.GRAFTED,
        ]  # fmt: skip
        assert placement_of(run.model).seeds["b", 0].state is SeedState.LOCKED
        files.wait()
        yield Unbroken(files, run.losses, pictures)


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Return the names of the parts that are not equal to the bit."""
    return [name for name in left if not equal(left[name], right[name])]


@pytest.mark.slow
@pytest.mark.parametrize("saved_at", SAVED_AT)
def test_a_run_with_everything_goes_on_from_any_step_to_the_bit(saved_at: int, unbroken: Unbroken, root: Path) -> None:
    path = next(path for path in unbroken.files.paths() if path.name.endswith(f"-step-{saved_at}"))
    run = Run(root)
    reseed(77)
    with run.growth:
        run.growth.load_state_dict(unbroken.files.load(path))
        assert differences(run.picture(), unbroken.pictures[saved_at]) == []
        for _ in range(STEPS - saved_at):
            run.step()
        assert run.losses == unbroken.losses[saved_at:]
        assert differences(run.picture(), unbroken.pictures[STEPS]) == []


@pytest.mark.slow
def test_the_newest_checkpoint_loads_over_a_run_that_is_elsewhere(unbroken: Unbroken, root: Path) -> None:
    run = Run(root)
    reseed(78)
    with run.growth:
        for _ in range(GRAFT + 3):
            run.step()
        told = len(run.growth.events)
        run.growth.load_state_dict(unbroken.files.load())
        found, wanted = run.picture(), dict(unbroken.pictures[STEPS])
        assert found.pop("story")[told:] == wanted.pop("story"), "what happened is appended, never restored"
        assert differences(found, wanted) == []
