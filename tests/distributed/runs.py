"""Runs under DDP: grown, undone, saved, gone on with, and one whose rank dies."""

import gc
import os
import signal
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from esper.kasmina import placement_of, topology
from esper.kasmina.grafted import grafts_of
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.distributed.reducer import reducer_of
from esper.services.tolaria.shrinking import Rent
from tests.distributed.training import Rank, Scripted, digest_of_parameters, gloo_threads, shortened


def whole_run(task: SimpleNamespace) -> Any:
    """200 steps with three grafts, a cull and a rollback; the digest at every boundary."""
    rank = Rank(task)
    first, second, third = rank.slots[:3]
    rank.harm = first
    blueprint = task.blueprint
    growth = rank.attach(controller=Scripted({4: (first, blueprint), 11: (second, blueprint)}))
    digests, losses, undo = [], [], None
    with growth:
        for step in range(1, 201):
            losses.append(rank.step(step, growth))
            if step == 135:
                undo = growth.graft(third, blueprint)
            if step == 155:
                growth.rollback(undo)
            if step % 10 == 0:
                digests.append(growth.digest())
        counts = {"threads": sum(t.name == "esper" for t in threading.enumerate())}
    folder = rank.root / growth.run_id
    return {
        "digests": digests, "losses": losses, "events": shortened(growth), **counts,
        "history": [[p.train, p.validation] for p in growth._engine.trials.position.history],
        "written": (folder / "events.jsonl").exists(), "run": growth.run_id,
        "state": {n: p.detach().double().sum().item() for n, p in rank.model.named_parameters()},
    }  # fmt: skip


def trained(task: SimpleNamespace) -> Any:
    """Train with a graft by hand; with one process on the data of all, or with each on its own."""
    rank = Rank(task)
    growth = rank.attach(controller=Scripted({}), steps=60)
    losses = []
    with growth:
        for step in range(1, 61):
            if step == 20:
                growth.graft(rank.slots[0], "mlp_adapter")
                if getattr(task, "faulty", False):
                    reducer_of(rank.net)._marks.clear()
            losses.append(rank.step(step, growth))
        return {
            "losses": losses, "digest": growth.digest(),
            "validation": [p.validation for p in growth._engine.trials.position.history],
            "parameters": {name: p.detach().flatten().tolist() for name, p in rank.model.named_parameters()},
        }  # fmt: skip


def shrunk(task: SimpleNamespace) -> Any:
    """Two grafts that are kept, one of which then adds nothing; what leaves is decided on the examples of every rank."""
    rank = Rank(task)
    growth = rank.attach(controller=Scripted({}), steps=200)
    with growth:
        for step in range(1, 121):
            if step in (11, 21):
                growth.graft(rank.slots[step // 20], task.blueprint)
            rank.step(step, growth)
        with torch.no_grad():
            for parameter in grafts_of(placement_of(rank.model).slots[rank.slots[0]].module).parameters():
                parameter.zero_()
        left = growth.shrink(Rent(params=1e-6, flops=0.0, errors=0.0))
        for step in range(121, 131):
            rank.step(step, growth)
        return {
            "left": [(event.slot, event.gain, event.gain_error, event.why) for event in left],
            "idle": rank.slots[0], "grown": [entry.slot for entry in topology(rank.model)], "digest": growth.digest(),
        }  # fmt: skip


class Noise:
    """Something of a rank's own in ``state=``: how many batches it drew, and from where."""

    def __init__(self, rank: int) -> None:
        self.position, self.rank = 0, rank

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "rank": self.rank}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position, self.rank = state_dict["position"], state_dict["rank"]


def _resumable(task: SimpleNamespace) -> tuple[Rank, Noise, Any]:
    rank, noise = Rank(task), Noise(task.rank)
    growth = rank.attach(controller=Scripted({3: (rank.slots[0], task.blueprint)}), state=(noise,), steps=100)
    return rank, noise, growth


def _train(rank: Rank, noise: Noise, growth: Any, steps: range, *, dies: bool = False) -> list[str]:
    digests = []
    for step in steps:
        if dies and rank.task.rank == 1 and step == 40:
            growth._engine.trials.join = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        noise.position += 1
        rank.step(step, growth)
        drawn = torch.rand(())
        digests.append(f"{growth.digest()} {float(drawn)} {noise.position} {noise.rank}")
    return digests


def unbroken(task: SimpleNamespace) -> Any:
    """A run that is saved after 55 steps, and goes on to 80."""
    rank, noise, growth = _resumable(task)
    with growth:
        _train(rank, noise, growth, range(1, 56))
        state = growth.state_dict()
        if task.rank == 0:
            CheckpointManager(Path(task.folder) / "saved").save(state, step=55)
        return {"after": _train(rank, noise, growth, range(56, 81)), "events": shortened(growth)}


def resumed(task: SimpleNamespace) -> Any:
    """The same run from its checkpoint on, in processes of its own."""
    torch.manual_seed(77 + task.rank)
    rank, noise, growth = _resumable(task)
    with growth:
        growth.load_state_dict(CheckpointManager(Path(task.folder) / "saved").load("latest"))
        return {"after": _train(rank, noise, growth, range(56, 81)), "events": shortened(growth)}


def dying(task: SimpleNamespace) -> Any:
    """A run that is saved after 25 steps; rank 1 is killed when its graft is about to join at step 40."""
    rank, noise, growth = _resumable(task)
    with growth:
        _train(rank, noise, growth, range(1, 26))
        state = growth.state_dict()
        if task.rank == 0:
            CheckpointManager(Path(task.folder) / "saved").save(state, step=25)
        _train(rank, noise, growth, range(26, 61), dies=True)


def restarted(task: SimpleNamespace) -> Any:
    """What a restart makes of that: the graft joins after all."""
    rank, noise, growth = _resumable(task)
    with growth:
        growth.load_state_dict(CheckpointManager(Path(task.folder) / "saved").load("latest"))
        return {"after": _train(rank, noise, growth, range(26, 61)), "events": shortened(growth)}


def apart(task: SimpleNamespace) -> Any:
    """A kernel that learns apart for 20 steps before it joins, another that fails on rank 1, and a run from in between."""
    rank = Rank(task)
    first, second = rank.slots[:2]
    growth = rank.attach(controller=Scripted({3: (first, task.blueprint)}), incubate=20, steps=100)
    told: list[Any] = []
    with growth:
        for step in range(1, 101):
            if step == 63:
                growth.graft(second, task.blueprint, incubate=20)
            if step == 67 and task.rank == 1:
                (sick,) = growth._engine.trials.incubator.apprentices.values()
                next(sick.kernel.parameters()).data.fill_(float("nan"))
            if step == 46:
                state = growth.state_dict()
                if task.rank == 0:
                    CheckpointManager(Path(task.folder) / "saved").save(state, step=45)
            rank.step(step, growth)
            told.append([digest_of_parameters(rank.model), _learning(growth), growth.digest()])
        dist.barrier()
        events = shortened(growth)
        growth.load_state_dict(CheckpointManager(Path(task.folder) / "saved").load("latest"))
        again = []
        for step in range(46, 61):
            rank.step(step, growth)
            again.append([digest_of_parameters(rank.model), _learning(growth), growth.digest()])
        return {"told": told, "again": again, "events": events}


def _learning(growth: Any) -> list[str]:
    """Return a digest of each kernel that learns apart, and how far it is."""
    found = growth._engine.trials.incubator.apprentices.values()
    return [f"{digest_of_parameters(each.kernel)} {each.taken} {len(each.moments)}" for each in found]


def late(task: SimpleNamespace) -> Any:
    """A kernel that the forge has not done on rank 0 when it is due, and that slips to a later boundary."""
    rank = Rank(task)
    growth = rank.attach(controller=Scripted({2: (rank.slots[0], task.blueprint)}), late="slip", steps=100)
    shelf, step = growth._engine._parts.shelf, 0
    growth._engine._parts.shelf.settle(limit_s=30) if task.rank == 0 else None
    found = shelf.by_id
    shelf.by_id = lambda kernel_id: None if step < 50 else found(kernel_id)
    digests = []
    with growth:
        for step in range(1, 81):
            rank.step(step, growth)
            digests.append(digest_of_parameters(rank.model))
            if step in (10, 20):
                growth.state_dict()  # waits for the controller, as "slip" alone never does
        return {"digests": digests, "events": shortened(growth)}


HELD: list[Any] = []


def ended(task: SimpleNamespace) -> Any:
    """A run with a graft, after which DDP is gone once it is collected; or one that somebody still holds."""
    ddp = _trained_once(task)
    if task.held:
        HELD.append(dist.group.WORLD)
    gc.collect()
    return {"collected": ddp() is None, "running": len(gloo_threads()) > 0}


def _trained_once(task: SimpleNamespace) -> Any:
    rank = Rank(task)
    with rank.attach(controller=Scripted({}), steps=30) as growth:
        for step in range(1, 31):
            if step == 10:
                growth.graft(rank.slots[0], task.blueprint)
            rank.step(step, growth)
    return weakref.ref(rank.net)
