"""The trainer on several ranks, and on one process that has the batches of all."""

import hashlib
import os
import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import esper
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.trainer import Averaging, Checkpoints, Stopping, TolariaTrainer, TrainingReport, Validation
from esper.testing.controllers import GraftAt
from tests.distributed.training import code_of
from tests.unit.tolaria.trainer.support import config, data, held_out, host


def small() -> nn.Module:
    """Return a network without anything that is random or counts a batch as one."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def _settings(task: SimpleNamespace, **changes: Any) -> Any:
    root = Path(task.folder) / "runs"
    arguments: dict[str, Any] = {
        "num_epochs": 3, "every": 2, "controller": GraftAt(1), "attach": {"late": "wait"}, "metrics": ("accuracy",),
        "schedule": "none", "learning_rate": 1e-3, "log_every": 3, **changes,
    }  # fmt: skip
    return config(root, **arguments)


def _told(report: TrainingReport, model: nn.Module) -> dict[str, Any]:
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if "running" not in name and "num_batches" not in name:  # each rank's own since the last forward pass
            total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {
        "digest": total.hexdigest(),
        "parameters": {name: p.detach().flatten().tolist() for name, p in model.named_parameters()},
        "losses": list(report.losses), "validations": [asdict(each) for each in report.validations],
        "events": [[e.step, e.kind.value, e.slot, e.blueprint, e.gain] for e in report.events],
        "steps": report.steps, "ended": report.ended, "best": report.best, "best_step": report.best_step,
        "folder": str(report.folder), "checkpoint": str(report.checkpoint),
    }  # fmt: skip


def shared(task: SimpleNamespace) -> Any:
    """Three epochs over 61 examples with two batches to a step: the last round has too few for both ranks."""
    size = 8 if task.size > 1 else 16
    model = small()
    waited: list[int] = []
    if task.size > 1:
        plain = DistributedDataParallel.no_sync

        def counted(ddp: DistributedDataParallel) -> Any:
            waited.append(1)
            return plain(ddp)

        DistributedDataParallel.no_sync = counted  # type: ignore[method-assign]
    loader = DataLoader(data(61), batch_size=size, shuffle=True)
    report = TolariaTrainer(_settings(task, accumulate=2)).fit(model, loader, held_out(27))
    return {**_told(report, model), "waited": len(waited)}


def split(task: SimpleNamespace) -> Any:
    """The same with a share held out by the trainer, and early stopping by a metric that gets no better."""
    model = small()

    def unmoved(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros(len(targets))

    settings = _settings(
        task, num_epochs=9, metrics={"unmoved": unmoved}, validation=Validation(monitor="unmoved"),
        stopping=Stopping(patience=2), controller=GraftAt(), held_out_ratio=0.2,
    )  # fmt: skip
    loader = DataLoader(data(61), batch_size=8 if task.size > 1 else 16, shuffle=True)
    return _told(TolariaTrainer(settings).fit(model, loader), model)


def _resumable(task: SimpleNamespace, **changes: Any) -> Any:
    """Return settings of a run with everything that each rank has for itself: dropout, statistics, averages, sums."""
    return _settings(
        task, num_epochs=2, averaging=Averaging(decay=0.9), schedule="cosine", precision="float16", accumulate=2,
        checkpoints=Checkpoints(every_steps=1, keep_last=99, asynchronous=False), **changes,
    )  # fmt: skip


def unbroken(task: SimpleNamespace) -> Any:
    """A run that keeps a checkpoint of every step."""
    model = host()
    loader = DataLoader(data(90), batch_size=8, shuffle=True)
    return _told(TolariaTrainer(_resumable(task)).fit(model, loader, held_out()), model)


def resumed(task: SimpleNamespace) -> Any:
    """The same run from its checkpoint of each of some steps on."""
    return [_from_step(task, step) for step in task.steps]


def _from_step(task: SimpleNamespace, step: int) -> Any:
    model = host()
    manager = CheckpointManager(Path(task.run) / "checkpoints", keep_last=99)
    path = next(path for path in manager.paths() if path.name.endswith(f"-step-{step}"))
    manager.close()
    loader = DataLoader(data(90), batch_size=8, shuffle=True)
    return _told(TolariaTrainer(_resumable(task, resume=path)).fit(model, loader, held_out()), model)


def stopped(task: SimpleNamespace) -> Any:
    """A run in which one rank alone gets a signal in the middle of its fifth step, and what is left goes on."""
    model, seen = host(), []

    def loss(net: nn.Module, batch: Any) -> Tensor:
        if net.training:
            seen.append(1)
            if task.rank == 1 and len(seen) == 9 and task.signal:  # two batches to a step
                os.kill(os.getpid(), task.signal)
        return functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    loader = DataLoader(data(90), batch_size=8, shuffle=True)
    settings = _resumable(task, loss=loss, resume="latest" if getattr(task, "goes_on", False) else None, metrics=())
    try:
        report = TolariaTrainer(settings).fit(model, loader, held_out())
    except KeyboardInterrupt:
        return {"ended": "KeyboardInterrupt", "seen": len(seen)}
    except SystemExit as left:
        return {"ended": f"SystemExit {left.code}", "seen": len(seen)}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return _told(report, model)


def rehearsed(task: SimpleNamespace) -> Any:
    """A rehearsal: a graft and a validation on a copy."""
    model = host()
    settings = _settings(task, fast_dev_run=True, averaging=Averaging(), controller=GraftAt())
    report = TolariaTrainer(settings).fit(model, DataLoader(data(64), batch_size=8, shuffle=True), held_out())
    return {"kinds": sorted({event.kind.value for event in report.events}), "folder": report.folder}


class Placed(DataLoader[Any]):
    """A loader that keeps its own place, at the beginning of a pass."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def loaders(task: SimpleNamespace) -> Any:
    """Loaders and models of all kinds: the code with which each is refused, or what came of it."""
    rows = data(40)
    own = DistributedSampler(rows, num_replicas=2, rank=task.rank, seed=3)
    odd = DistributedSampler(rows, num_replicas=4, rank=task.rank)
    other = DataLoader(data(40 + 16 * task.rank), batch_size=8)
    trainer = TolariaTrainer(_settings(task, num_epochs=1, controller=GraftAt()))

    def fit(loader: Any, aside: Any = None, model: nn.Module | None = None, by: TolariaTrainer = trainer) -> str:
        return code_of(lambda: by.fit(model or small(), loader, aside or held_out(6)))

    plain = DataLoader(rows, batch_size=8)
    return {
        "sharded": fit(DataLoader(rows, batch_size=8, sampler=own)),
        "of another number": fit(DataLoader(rows, batch_size=8, sampler=odd)),
        "with a place": fit(Placed(rows, batch_size=8)),
        "with a place, sharded": fit(Placed(rows, batch_size=8, sampler=own)),
        "of other lengths": fit(other),
        "a list held out": fit(plain, list(held_out(30))),
        "a list of one": fit(plain, list(DataLoader(data(6), batch_size=6))),
        "sharded, held out": fit(plain, DataLoader(rows, batch_size=8, sampler=own)),
        "held out, fewer than ranks": fit(plain, DataLoader(data(1), batch_size=8)),
        "twin": fit(plain, by=TolariaTrainer(_settings(task, control="twin"))),
        "ddp": fit(plain, model=DistributedDataParallel(small())),
        "no other model": isinstance(esper.wrap(small(), example=torch.rand(2, 2)), nn.Module),
        "ranks": dist.get_world_size(),
    }
