"""A growing training that may be killed at any moment: ``python -m benchmarks.support.killable FOLDER SEED [forgetful]``.

It goes on from its newest checkpoint where there is one, saves beside the training every few steps, tells on standard output
where it is, and writes ``end.json`` when it is through. A forgetful one does not go on with torch's generator where it stood.
"""

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
from esper.blueprints import catalog as catalog
from esper.blueprints import initial_state, pack_kernel
from esper.ir import REGISTRY, BlueprintIR
from esper.kasmina import placement_of
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.growth import Growth
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.controllers import GraftAt
from esper.testing.forging import artifact_of, request_for, verdict_on

STEPS, EVERY, SAVE_EVERY = 120, 6, 3
GRAFT_AT = (2, 4, 9)
"""Boundaries at which the controller asks for a graft: early, and while an earlier one is on trial."""
UNDO_AT = 100
"""Step after which the newest graft is rolled back by hand: the position of the run goes back, its steps count on."""
WIDTH, CLASSES, BATCH, EXAMPLES = 12, 3, 16, 64


class Host(nn.Module):
    """A perceptron with what makes resuming hard: running statistics and random masks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.2))
        self.last = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(self.last(self.body(self.stem(x))))
        return result


class Batches:
    """Batches of a data set in an order that is drawn anew in every epoch; knows its place, as a stateful loader does."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(EXAMPLES, 5, generator=generator)
        self.targets = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
        self.seed, self.epoch, self.place = seed, 0, 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        chosen = order[self.place : self.place + BATCH]
        self.place += BATCH
        if self.place >= EXAMPLES:
            self.epoch, self.place = self.epoch + 1, 0
        return self.inputs[chosen], self.targets[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return its place."""
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place."""
        self.epoch, self.place = state_dict["epoch"], state_dict["place"]


@dataclass
class Run:
    """One training, from its first step or its newest checkpoint to the end."""

    folder: Path
    seed: int
    forgetful: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        random.seed(self.seed)
        np.random.seed(self.seed)
        torch.manual_seed(self.seed)
        self.batches = Batches(self.seed)
        self.model = esper.wrap(Host(), example=self.batches.inputs[:BATCH])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=STEPS)

    def to_the_end(self) -> None:
        """Train, saving on the way."""
        with self._attached() as growth, CheckpointManager(self.folder / "checkpoints") as checkpoints:
            if checkpoints.paths():
                state = checkpoints.load()
                growth.load_state_dict(state["growth"])
                self.losses = state["losses"]
                if self.forgetful:
                    torch.manual_seed(self.seed)
            told("start", growth.spent_steps)
            began = growth.spent_steps
            while growth.spent_steps < STEPS:
                self._step(growth)
                if growth.spent_steps % SAVE_EVERY == 0:
                    told("save", growth.spent_steps)
                    state = {"growth": growth.state_dict(), "losses": list(self.losses)}
                    checkpoints.save(state, step=growth.spent_steps, blocking=False)
            end = {
                "began": began, "digest": growth.digest(), "losses": self.losses,
                "story": [story_of(event.to_json()) for event in growth.events],
            }  # fmt: skip
            (self.folder / "end.json").write_text(json.dumps(end), encoding="utf-8")
            told("end", growth.spent_steps)

    def _attached(self) -> Growth:
        def validate(model: nn.Module) -> Tensor:
            return F.cross_entropy(model(self.batches.inputs), self.batches.targets, reduction="none")

        growth: Growth = esper.attach(
            self.model, self.optimizer, validate=validate, every=EVERY, steps=STEPS, scheduler=self.schedule,
            state=(self.batches,), budget="x99", controller=GraftAt(*GRAFT_AT), late="wait", root=self.folder,
        )  # fmt: skip
        return growth

    def _step(self, growth: Growth) -> None:
        self.model.train()
        inputs, targets = self.batches.next()
        scale = 1.0 + 0.1 * random.random() + 0.1 * float(np.random.rand())  # so that every generator matters
        loss = scale * F.cross_entropy(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        told("step", growth.spent_steps + 1)
        growth.step(loss)
        told("trained", growth.spent_steps)
        self.losses.append(float(loss.detach()))
        joined = [event for event in growth.events if event.kind.value == "grafted"]
        if growth.spent_steps == UNDO_AT and joined:
            growth.rollback(joined[-1])


def story_of(event: dict[str, Any]) -> list[Any]:
    """Return what an event tells, without the names that are drawn anew in every process."""
    return [
        event[key] for key in ("step", "kind", "slot", "blueprint", "kernel_id", "gain", "gain_error", "kept", "why")
    ]


def told(what: str, step: int) -> None:
    """Say where the training is."""
    print(what, step, flush=True)


async def fill(root: Path) -> None:
    """Put every kernel that the host can use into the library below ``root``, so that nothing has to be compiled."""
    model = esper.wrap(Host(), example=torch.randn(BATCH, 5))
    async with await KernelManager.open(root / "library") as library:
        for place in placement_of(model).slots.values():
            for name in REGISTRY.eligible(place.site()):
                await library.submit(request_for(REGISTRY.build(name, place.site())))
        while (job := await library.claim("fill", lease_s=60)) is not None:
            ir = BlueprintIR.from_json(job.architecture_ir)
            seed, dtype = job.build.weight_seed, job.build.dtype
            data = pack_kernel(ir, initial_state(ir, seed=seed, dtype=dtype), seed=seed)
            artifact = artifact_of(job.blueprint_id, data)
            await library.complete(job.job_id, "fill", artifact, verdict_on(artifact))


if __name__ == "__main__":
    torch.set_num_threads(1)
    Run(Path(sys.argv[1]), int(sys.argv[2]), forgetful=len(sys.argv) > 3).to_the_end()
