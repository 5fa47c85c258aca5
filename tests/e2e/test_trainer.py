"""The plain loop over ``attach``."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.errors import ConfigError
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.trainer import TolariaTrainer, TrainerConfig


def _loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(600, 2, generator=generator) * 2 - 1
    labels = (torch.sin(7 * inputs[:, 0]) > 2 * inputs[:, 1]).long()
    return DataLoader(TensorDataset(inputs, labels), batch_size=30, generator=generator)


class Host(nn.Module):
    """Remembers in which thread it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        self.threads: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.threads.add(threading.get_ident())
        outputs: Tensor = self.layers(x)
        return outputs


async def test_it_trains_and_grows_beside_the_callers_event_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ticks = Host(), 0
    config = TrainerConfig(num_epochs=15, learning_rate=1e-2, budget="x20", root=str(tmp_path), attach={"late": "wait"})
    training = asyncio.create_task(TolariaTrainer(config).train(model, _loader()))
    while not training.done():
        await asyncio.sleep(0.01)
        ticks += 1
    report = await training
    assert report.steps == 15 * 18, "a tenth of 600 examples is held out, 18 batches of 30 are trained on"
    assert len(report.losses) == 15
    assert report.losses[-1] < report.losses[0]
    assert any(event.kind is EventKind.GRAFTED for event in report.events)
    assert ticks > 10, "the loop went on"
    assert threading.get_ident() not in model.threads, "training ran in a thread of its own"


def test_settings_that_are_not_known_are_refused(tmp_path: Path) -> None:
    assert esper.Trainer is TolariaTrainer
    for config, word in (
        (TrainerConfig(optimizer="lion"), "adamw"),
        (TrainerConfig(loss="hinge"), "cross_entropy"),
        (TrainerConfig(held_out_ratio=1.5), "between 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=word):
            TolariaTrainer(config)
