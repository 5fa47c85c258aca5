"""Callbacks in the real frameworks, with two processes of each."""

import importlib.util
import os
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from esper.kasmina import plan
from esper.testing.controllers import Silent
from tests.distributed.training import digest_of_parameters, shortened
from tests.frameworks.library import stock

ROOT = Path(__file__).resolve().parents[2]


def _announced(task: SimpleNamespace) -> None:
    """Say in the environment what ``torchrun`` would: frameworks read who they are from there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(
        RANK=str(task.rank), LOCAL_RANK=str(task.rank), WORLD_SIZE=str(task.size), NODE_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip


def _library(task: SimpleNamespace, make: Any, example: Any) -> Path:
    root = Path(task.folder) / "runs"
    if task.rank == 0 and not (root / "library").exists():
        stock(root, plan(make(), example))
    dist.barrier()
    return root


def _network() -> nn.Module:
    torch.manual_seed(3)
    first = (nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
    return nn.Sequential(*first, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def _examples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 5, generator=generator), torch.randint(4, (count,), generator=generator))


def in_lightning(task: SimpleNamespace) -> Any:
    """Three epochs of eight steps: a graft in the first, another in the second, the first undone in the third."""
    _announced(task)
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from esper.integrations.lightning import Growth

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = _network()

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], _index: int) -> None:
            pass

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=5e-3)

    class Act(Callback):
        def __init__(self, growth: Growth) -> None:
            self.growth, self.told = growth, []

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            run, step = self.growth.run, trainer.global_step
            if step in (6, 12):
                run.graft({6: "1", 12: "4"}[step], "mlp_adapter")
            if step == 20:
                run.rollback(next(event for event in run.events if event.kind.value == "grafted" and event.slot == "4"))
            self.told.append(
                [step, digest_of_parameters(trainer.lightning_module), float(torch.rand(())), run.digest()]
            )

    def losses(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    root = _library(task, _network, torch.randn(2, 5))
    growth = Growth(losses=losses, module="model", every=4, budget="x99", controller=Silent(), root=root)
    act, kept = Act(growth), Path(task.folder) / "kept"
    saver = ModelCheckpoint(
        dirpath=kept, save_top_k=-1, filename="{step}", every_n_epochs=1, save_on_train_epoch_end=True
    )
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=task.size, strategy="ddp", logger=False, callbacks=[growth, act, saver],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=task.folder,
    )  # fmt: skip
    loaders = DataLoader(_examples(96, 0), batch_size=6, shuffle=True), DataLoader(_examples(24, 1), batch_size=6)
    module = Classifier()
    torch.manual_seed(100 + task.rank if task.at is None else 7)  # a resumed process begins with other generators
    path = None if task.at is None else str(kept / f"step={task.at}.ckpt")
    trainer.fit(module, *loaders, ckpt_path=path)
    return {"told": act.told, "events": shortened(growth.run)}


def in_transformers(task: SimpleNamespace) -> Any:
    """Sixteen steps of a small Llama: a graft after the fifth, undone after the fourteenth."""
    _announced(task)
    from tests.frameworks import test_transformers as single

    root = _library(task, single.llama, single.BATCH)
    growth = single.callback(root)
    act = single.Act(growth, single.SLOTS[single.llama], undo_at=14)
    if task.at is not None:
        undo = act._undo_at

        class Later(single.Act):  # the event of the graft is in the run that goes on
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == undo:
                    self._event = next(e for e in growth.run.events if e.kind.value == "grafted")
                super().on_step_end(args, state, control, **_)

        act = Later(growth, single.SLOTS[single.llama], undo_at=14)
    folder = Path(task.folder) / "kept"
    resume = None if task.at is None else folder / f"checkpoint-{task.at}"
    single.train(
        single.llama(), growth, folder, act, resume=resume, ddp_backend="gloo", gradient_accumulation_steps=2,
        max_grad_norm=0.5, ddp_find_unused_parameters=False,
    )  # fmt: skip
    return {
        "told": [[step, *digests] for step, digests in sorted(act.digests.items())],
        "events": shortened(growth.run), "reduced": growth.run._subject.team.size,
    }  # fmt: skip


def _recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accelerate_recipe", ROOT / "examples" / "accelerate_recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def in_accelerate(task: SimpleNamespace) -> Any:
    """The recipe with a graft by hand after step 12, undone after step 50; all of it, a part, or the rest from a state."""
    _announced(task)
    from tests.frameworks.test_accelerate import Undo

    recipe = _recipe()
    folder, undo = Path(task.folder) / "runs", Undo(12, 50)
    _library(task, recipe.make_model, torch.zeros(1, 2))
    losses = recipe.train(60, folder, until=task.until, resume=task.resume, controller=Silent(), watch=undo)
    kinds = [event.kind.value for event in undo.events if event.kind.value != "kept"]
    return {"losses": losses, "digests": undo.digests, "kinds": kinds, "undone": undo.before == undo.after}
