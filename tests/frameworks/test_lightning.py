"""Growth in a real ``lightning.Trainer``: it grows, resumes by ``ckpt_path`` to the bit, and rolls back."""

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.errors import ConfigError
from esper.kasmina import placement_of, topology
from tests.frameworks.library import stock

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from esper.integrations.lightning import Growth  # noqa: E402
from esper.testing.controllers import Silent  # noqa: E402

pytestmark = [
    # A machine of tests has no accelerator, and tiny data need no workers.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches.*"),
    pytest.mark.filterwarnings("ignore:GPU available but not used.*"),
    # A resumed run keeps its checkpoints where the first one did.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Lightning's own use of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]
BATCHES, EVERY, EPOCHS = 8, 4, 4
STEPS = BATCHES * EPOCHS
GRAFT_AT = 6


def network() -> nn.Module:
    """Return a small network with dropout and batch norm."""
    first = (nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
    return nn.Sequential(*first, nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))


def examples(count: int = 48, *, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 5, generator=generator), torch.randint(4, (count,), generator=generator))


class Resumable:
    """Batches that go on from where a checkpoint left them, as a stateful loader's do."""

    def __init__(self) -> None:
        x, y = examples().tensors
        self._batches = list(zip(x.split(6), y.split(6), strict=True))
        self.position = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        self.position %= len(self)
        while self.position < len(self):
            self.position += 1
            yield list(self._batches[self.position - 1])

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Classifier(LightningModule):
    """A user's module, as of any tutorial; ``reverse`` gives its two equal groups the other way round."""

    def __init__(self, *, reverse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = network()
        self.reverse = reverse
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x) * (1 + 0.1 * random.random()), y)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        same = [{"params": [self.model[1].bias], "lr": 3e-3}, {"params": [self.model[0].bias], "lr": 1e-2}]
        taken = {id(parameter) for group in same for parameter in group["params"]}
        rest = {"params": [parameter for parameter in self.parameters() if id(parameter) not in taken]}
        groups = [*(same[::-1] if self.reverse else same), rest]
        optimizer = torch.optim.AdamW(groups, lr=5e-3)
        schedule = LambdaLR(optimizer, lambda step: 0.98**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def losses(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class GraftAt(Callback):
    """Grafts by hand after a step; what a controller would do, without its patience."""

    def __init__(self, growth: Growth, step: int, slot: str = "4", blueprint: str = "mlp_adapter") -> None:
        self._growth, self._step, self._slot, self._blueprint = growth, step, slot, blueprint

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._step and self._growth.run is not None and not topology(self._model(trainer)):
            self._growth.run.graft(self._slot, self._blueprint)

    def _model(self, trainer: Trainer) -> nn.Module:
        module = trainer.lightning_module
        return module.model if isinstance(module, Classifier) else module


def grafted(growth: Growth) -> list[tuple[int, str, str]]:
    assert growth.run is not None
    return [(event.step, event.slot, event.blueprint) for event in growth.run.events if event.kind.value == "grafted"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = esper.plan(network(), torch.zeros(2, 5))
    return stock(tmp_path_factory.mktemp("runs"), plan)


def callback(root: Path, **changes: Any) -> Growth:
    arguments = {
        "losses": losses, "every": EVERY, "budget": "x99", "module": "model", "controller": Silent(), "root": root,
        **changes,
    }  # fmt: skip
    return Growth(**arguments)


def trainer(folder: Path, *callbacks: Callback, **changes: Any) -> Trainer:
    arguments = {
        "max_epochs": EPOCHS, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "callbacks": list(callbacks), "default_root_dir": folder, **changes,
    }  # fmt: skip
    return Trainer(**arguments)


def shuffled() -> DataLoader[Any]:
    return DataLoader(examples(), batch_size=6, shuffle=True)


def held_out() -> DataLoader[Any]:
    return DataLoader(examples(12, seed=1), batch_size=6)


def fit(
    root: Path, folder: Path, loader: Callable[[], Any], *extra: Callback, growth: Growth | None = None,
    module: Classifier | None = None, ckpt_path: Path | None = None, **changes: Any,
) -> tuple[Classifier, Growth, Trainer]:  # fmt: skip
    growth = growth or callback(root)
    module = module or Classifier()
    random.seed(1)
    torch.manual_seed(1)
    fitting = trainer(folder, growth, GraftAt(growth, GRAFT_AT), *extra, **changes)
    fitting.fit(module, loader(), held_out(), ckpt_path=ckpt_path)
    return module, growth, fitting


@pytest.mark.parametrize(
    ("loader", "save_at"),
    [pytest.param(shuffled, BATCHES, marks=pytest.mark.slow), (Resumable, 10)],
    ids=["epoch", "mid-epoch"],
)
@pytest.mark.parametrize("reverse", [False, True], ids=["same-order", "groups-swapped"])
def test_a_fit_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(
    loader: Callable[[], Any], save_at: int, reverse: bool, root: Path, tmp_path: Path
) -> None:
    at_end = loader is shuffled
    often = {"save_on_train_epoch_end": True} if at_end else {"every_n_train_steps": save_at}

    def keep() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", **often)

    whole, growth, _ = fit(root, tmp_path, loader, keep())
    assert grafted(growth) == [(GRAFT_AT, "4", "mlp_adapter")]
    digest = growth.run.digest()
    assert len(whole.losses) == STEPS

    module, resumed, _ = fit(
        root, tmp_path, loader, keep(), module=Classifier(reverse=reverse), ckpt_path=tmp_path / f"step={save_at}.ckpt"
    )
    assert module.losses == whole.losses[save_at:]
    assert resumed.run.digest() == digest
    assert grafted(resumed) == grafted(growth)


def test_lightning_alone_mixes_up_equal_groups_that_a_resumed_run_gives_in_another_order(tmp_path: Path) -> None:
    """The trap is real: this is what the names of parameters guard a growing run against."""
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=10, save_top_k=-1, filename="{step}")
    whole, again, swapped = Classifier(), Classifier(), Classifier(reverse=True)
    for module, path in ((whole, None), (again, "step=10.ckpt"), (swapped, "step=10.ckpt")):
        random.seed(1)
        torch.manual_seed(1)
        module.model.eval()  # no dropout: Lightning does not put the generators back
        fitting = trainer(tmp_path, keep, max_epochs=3)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found .* module.s. in eval mode")
            fitting.fit(module, Resumable(), held_out(), ckpt_path=None if path is None else tmp_path / path)
    assert len(swapped.losses) == len(again.losses) == len(whole.losses) - 10
    assert swapped.optimizers().param_groups[0]["lr"] != pytest.approx(again.optimizers().param_groups[1]["lr"])
    assert [g["params"][0].shape for g in swapped.optimizers().param_groups[:2]] == [torch.Size([8])] * 2
    moments = [module.optimizers().state[module.model[1].bias]["exp_avg_sq"] for module in (again, swapped)]
    assert not torch.equal(*moments)


def test_until_something_grows_a_fit_computes_what_it_did_without_the_callback(root: Path, tmp_path: Path) -> None:
    plain = Classifier()
    random.seed(1)
    torch.manual_seed(1)
    trainer(tmp_path).fit(plain, shuffled(), held_out())
    module, growth = Classifier(), callback(root)
    random.seed(1)
    torch.manual_seed(1)
    trainer(tmp_path, growth).fit(module, shuffled(), held_out())
    assert module.losses == plain.losses
    assert list(module.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))


class Undo(Callback):
    """Grafts, trains on, and rolls back; keeps the digests."""

    def __init__(self, growth: Growth) -> None:
        self._growth = growth
        self.digests: list[str] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        run = self._growth.run
        assert run is not None
        if trainer.global_step == 5:
            self.digests.append(run.digest())
            self._event = run.graft("4", "gated_mlp")
            self.digests.append(run.digest())
        if trainer.global_step == 9:
            self.digests.append(run.digest())
            run.rollback(self._event)
            self.digests.append(run.digest())


def test_a_rollback_within_a_fit_puts_everything_back_and_training_goes_on(root: Path, tmp_path: Path) -> None:
    growth = callback(root)
    undo = Undo(growth)
    module = Classifier()
    trainer(tmp_path, growth, undo).fit(module, shuffled(), held_out())
    before, grown, later, after = undo.digests
    assert before == after
    assert len({before, grown, later}) == 3
    assert len(module.losses) == STEPS
    assert topology(module.model) == ()
    assert len(module.optimizers().param_groups) == 3


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.slow), "bf16-mixed"])
def test_a_fit_with_accumulation_clipping_and_mixed_precision_goes_on_to_the_bit(
    precision: str, root: Path, tmp_path: Path
) -> None:
    kinds = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "precision": precision, "max_epochs": 6}

    def keep() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)

    whole, growth, fitted = fit(root, tmp_path, shuffled, keep(), **kinds)
    assert fitted.global_step == 18  # three of each epoch's eight batches: 3 + 3 + 2
    assert growth.run.spent_steps == 18
    assert grafted(growth) == [(GRAFT_AT, "4", "mlp_adapter")]
    module, resumed, _ = fit(root, tmp_path, shuffled, keep(), ckpt_path=tmp_path / "epoch=2.ckpt", **kinds)
    assert module.losses == whole.losses[24:]
    assert resumed.run.digest() == growth.run.digest()


@pytest.fixture(scope="module")
def checkpoint(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with one graft."""
    folder = tmp_path_factory.mktemp("checkpoint")
    fit(root, folder, shuffled, ModelCheckpoint(folder, filename="last"), max_epochs=2)
    return folder / "last.ckpt"


def test_a_checkpoint_holds_plain_containers_and_each_tensor_once(checkpoint: Path) -> None:
    loaded = torch.load(checkpoint, weights_only=True)
    training = loaded["esper"]["growth"]["training"]
    own = {f"model.{name}": tensor for name, tensor in training["tensors"].items()}
    assert own.keys() == loaded["state_dict"].keys()
    assert all(own[name].data_ptr() == tensor.data_ptr() for name, tensor in loaded["state_dict"].items())
    theirs = {v.data_ptr() for state in loaded["optimizer_states"][0]["state"].values() for v in state.values()}
    ours = {v.data_ptr() for moments in training["moments"].values() for v in moments.values()}
    assert ours == theirs


@pytest.mark.parametrize("example", [None, torch.zeros(2, 5)], ids=["learned-from-checkpoint", "example"])
def test_a_fresh_module_is_tested_from_a_checkpoint_that_has_grafts(
    example: Tensor | None, checkpoint: Path, root: Path, tmp_path: Path
) -> None:
    class Tested(Classifier):
        def test_step(self, batch: list[Tensor], _index: int) -> None:  # noqa: PT019
            self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

    module = Tested()
    testing = trainer(tmp_path, callback(root, example=example), ModelCheckpoint(checkpoint.parent))
    testing.test(module, held_out(), ckpt_path=checkpoint, verbose=False)
    assert [entry.blueprint for entry in topology(module.model)] == ["mlp_adapter"]
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in module.state_dict().items())
    assert placement_of(module.model).ready


def test_an_interrupted_fit_ends_the_run_and_can_be_started_again(root: Path, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                raise RuntimeError("stopped")

    module, growth = Classifier(), callback(root)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(root, tmp_path, shuffled, Stop(), growth=growth, module=module)
    assert placement_of(module.model).grower is None
    assert "on_load_checkpoint" not in vars(module)
    _, again, _ = fit(root, tmp_path, shuffled, module=module)
    assert again.run.spent_steps == STEPS


def test_a_monitor_of_learning_rates_bears_with_a_newborns_group(root: Path, tmp_path: Path) -> None:
    module, growth, _ = fit(
        root, tmp_path, shuffled, LearningRateMonitor(), logger=CSVLogger(tmp_path), log_every_n_steps=1
    )
    assert grafted(growth)
    assert len(module.optimizers().param_groups) == 4


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class TwoSchedules(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [LambdaLR(optimizer, lambda _: 1.0), LambdaLR(optimizer, lambda _: 1.0)]


class TwoOptimizers(Classifier):
    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.model[0].parameters(), lr=0.1),
            torch.optim.SGD(self.model[4].parameters(), lr=0.1),
        ]


@pytest.mark.parametrize(
    ("module", "extra", "changes", "words"),
    [
        (Manual, (), {}, "manual optimization"),
        (TwoSchedules, (), {}, "2 schedules"),
        (Classifier, (EMAWeightAveraging(),), {}, "WeightAveraging"),
        (Classifier, (), {"module": "modle"}, "no part 'modle'"),
    ],
    ids=["manual", "schedules", "averaging", "part"],
)
def test_what_cannot_grow_is_refused_before_the_first_step(
    module: type[Classifier],
    extra: tuple[Callback, ...],
    changes: dict[str, Any],
    words: str,
    root: Path,
    tmp_path: Path,
) -> None:
    made = module()
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, callback(root, **changes), *extra).fit(made, shuffled(), held_out())
    assert made.losses == []


class Unvalidated(Classifier):
    validation_step = None


class Direct(Unvalidated):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])


def test_losses_need_a_validation_loader(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ESP-2462"):
        trainer(tmp_path, callback(root)).fit(Unvalidated(), shuffled())


def test_a_module_that_is_not_the_one_that_is_called_is_reported_after_one_step(root: Path, tmp_path: Path) -> None:
    growing = callback(root, module=None, losses=None, validate=lambda model: losses(model.model, examples(6)[:]))
    with pytest.raises(ConfigError, match="ESP-2464"):
        trainer(tmp_path, growing).fit(Direct(), shuffled())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"validate": None, "losses": None}, "ESP-2462"),
        ({"validate": lambda model: model, "losses": losses}, "ESP-2462"),
        ({"losses": losses, "patience": 3}, "ESP-2461"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError, match=code):
        Growth(every=4, budget="x2", **arguments)
