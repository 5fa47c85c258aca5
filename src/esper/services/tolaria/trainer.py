"""A plain training loop over ``attach``, for those who want one."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from esper.errors import ConfigError
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.checkpoint import CheckpointManager as CheckpointManager
from esper.services.tolaria.events import GrowthEvent

Batch = tuple[Tensor, Tensor]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
}


@dataclass(frozen=True)
class TrainerConfig:
    """How a model is trained.

    Attributes:
        num_epochs: Passes over the training data.
        tamiyo_url: Address of a controller; None means the one in this process.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: Peak of the cosine schedule.
        loss: ``cross_entropy`` or ``mse``.
        held_out_ratio: Share of the data set that is held out for validation; never trained on.
        every: Optimizer steps between boundaries; None means twenty boundaries in the run.
        budget: How much the model may grow.
        seed: Of the split into training and held-out examples.
        root: Folder for what the run writes.
        attach: Further arguments of ``esper.attach``.
    """

    num_epochs: int = 10
    tamiyo_url: str | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    loss: str = "cross_entropy"
    held_out_ratio: float = 0.1
    every: int | None = None
    budget: str | Budget = "+30%"
    seed: int = 0
    root: str = "./esper-runs"
    attach: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingReport:
    """What a training ended with.

    Attributes:
        losses: Mean training loss of each epoch.
        events: What happened to the model.
        steps: Optimizer steps taken.
    """

    losses: tuple[float, ...]
    events: tuple[GrowthEvent, ...]
    steps: int


class TolariaTrainer:
    """Trains a model that grows.

    Args:
        config: How.
    """

    def __init__(self, config: TrainerConfig) -> None:
        _known("optimizer", config.optimizer, OPTIMIZERS)
        _known("loss", config.loss, LOSSES)
        if not 0 < config.held_out_ratio < 1:
            raise ConfigError(
                f"held_out_ratio={config.held_out_ratio}", why="a share lies between 0 and 1", code="ESP-2160"
            )
        self.config = config

    async def train(self, model: nn.Module, dataloader: "DataLoader[Batch]") -> TrainingReport:
        """Train in a thread of its own, so that training and the caller's loop never block each other.

        Args:
            model: Wrapped by ``esper.wrap``, or wrapped here with automatic slots.
            dataloader: Batches of inputs and targets; a share of its data set is held out for validation.

        Raises:
            ConfigError: If the loader is empty or its data set cannot be split.
        """
        return await asyncio.to_thread(self.fit, model, dataloader)

    def fit(self, model: nn.Module, dataloader: "DataLoader[Batch]") -> TrainingReport:
        """Train in this thread; see ``train``."""
        training, held_out = self._split(dataloader)
        steps = len(training) * self.config.num_epochs
        optimizer = OPTIMIZERS[self.config.optimizer](model.parameters(), lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        with self._attached(model, optimizer, schedule, held_out, steps) as growth:
            losses = tuple(
                self._epoch(model, optimizer, schedule, training, growth) for _ in range(self.config.num_epochs)
            )
            return TrainingReport(losses, tuple(growth.events), growth.spent_steps)

    def _attached(
        self, model: nn.Module, optimizer: Any, schedule: Any, held_out: "DataLoader[Batch]", steps: int
    ) -> Any:
        from esper import assembly
        from esper.kasmina import MorphableModel, wrap

        if not isinstance(model, MorphableModel):
            wrap(model, example=next(iter(held_out))[0])
        every = self.config.every or max(1, steps // 20)
        return assembly.attach(
            model,
            optimizer,
            validate=lambda present: self._held_out_losses(present, held_out),
            every=every,
            steps=steps,
            scheduler=schedule,
            budget=self.config.budget,
            controller=self.config.tamiyo_url or "plateau",
            root=self.config.root,
            **self.config.attach,
        )

    def _epoch(self, model: nn.Module, optimizer: Any, schedule: Any, batches: Iterable[Batch], growth: Any) -> float:
        model.train()
        total, count = 0.0, 0
        for inputs, targets in batches:
            loss = LOSSES[self.config.loss](model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            growth.step(loss)
            total, count = total + float(loss.detach()), count + 1
        return total / count

    def _held_out_losses(self, model: nn.Module, batches: Iterable[Batch]) -> Tensor:
        losses = [self._per_example(model(inputs), targets) for inputs, targets in batches]
        return torch.cat(losses)

    def _per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = LOSSES[self.config.loss](outputs, targets, reduction="none")
        return losses.reshape(len(losses), -1).mean(dim=1)

    def _split(self, dataloader: "DataLoader[Batch]") -> "tuple[DataLoader[Batch], DataLoader[Batch]]":
        """Hold out a share of the data set, and give the rest to a loader like the one that was given."""
        data: Any = dataloader.dataset
        count_all = len(data) if hasattr(data, "__len__") else 0
        if count_all < 2:
            raise ConfigError(
                "the data set cannot be split",
                why="it has no length, or fewer than two examples, so none can be held out for validation",
                todo="give a map-style data set with at least two examples",
                code="ESP-2161",
            )
        shuffle = _shuffles(dataloader)
        order = torch.randperm(count_all, generator=torch.Generator().manual_seed(self.config.seed)).tolist()
        count = max(1, int(count_all * self.config.held_out_ratio))
        size = dataloader.batch_size or 1
        training: DataLoader[Batch] = DataLoader(
            Subset(data, order[count:]), batch_size=size, shuffle=shuffle, drop_last=dataloader.drop_last,
            collate_fn=dataloader.collate_fn, num_workers=dataloader.num_workers, generator=dataloader.generator,
            pin_memory=dataloader.pin_memory, timeout=dataloader.timeout, worker_init_fn=dataloader.worker_init_fn,
            persistent_workers=dataloader.persistent_workers, prefetch_factor=dataloader.prefetch_factor,
            multiprocessing_context=dataloader.multiprocessing_context,
        )  # fmt: skip
        held_out: DataLoader[Batch] = DataLoader(
            Subset(data, sorted(order[:count])), batch_size=size, collate_fn=dataloader.collate_fn
        )
        if len(training) == 0:
            raise ConfigError(
                "the loader is empty",
                why=f"{count_all - count} examples are left to train on and drop_last drops them",
                todo="lower batch_size or held_out_ratio",
                code="ESP-2162",
            )
        return training, held_out


def _shuffles(dataloader: "DataLoader[Batch]") -> bool:
    """Tell whether a loader draws its order anew; one with an order of its own cannot be split without losing it."""
    plain = type(dataloader.batch_sampler) is BatchSampler and dataloader.batch_size is not None
    if not plain or type(dataloader.sampler) not in (RandomSampler, SequentialSampler):
        raise ConfigError(
            "the loader cannot be split",
            why=f"it has a {type(dataloader.sampler if plain else dataloader.batch_sampler).__name__} of its own",
            todo="give a loader with shuffle=True or False, or write the loop yourself with esper.attach",
            code="ESP-2164",
        )
    return type(dataloader.sampler) is RandomSampler


def _known(name: str, value: str, table: dict[str, Any]) -> None:
    if value not in table:
        raise ConfigError(f"{name} {value!r} is not known", todo=f"one of {', '.join(table)}", code="ESP-2163")
