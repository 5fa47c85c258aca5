"""A small task on which everything of the trainer is tried."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from esper.services.tolaria.trainer import TrainerConfig
from esper.testing.controllers import Silent


def host(seed: int = 0, dropout: float = 0.1) -> nn.Module:
    """Return a small network with every kind of state: dropout, batch statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
        )  # fmt: skip


def data(count: int = 64, seed: int = 0) -> TensorDataset:
    """Return a small task that a network can learn."""
    inputs = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return TensorDataset(inputs, (torch.sin(4 * inputs[:, 0]) > 2 * inputs[:, 1]).long())


def loader(count: int = 64, batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(data(count), batch_size=batch_size, **{"shuffle": True, **options})


def held_out(count: int = 24) -> DataLoader[Any]:
    return DataLoader(data(count, seed=1), batch_size=12)


def config(root: Path, **changes: Any) -> TrainerConfig:
    """Return settings of a short quiet run in which nothing grows unless asked."""
    arguments: dict[str, Any] = {
        "num_epochs": 2, "learning_rate": 1e-2, "controller": Silent(), "progress": False, "budget": "x99",
        "every": 4, "root": str(root), **changes,
    }  # fmt: skip
    return TrainerConfig(**arguments)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
