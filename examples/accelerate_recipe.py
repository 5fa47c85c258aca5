"""A training loop of Accelerate that grows: python examples/accelerate_recipe.py --steps 60 --folder runs/recipe [--resume].

In several processes: accelerate launch --cpu --num_processes 2 examples/accelerate_recipe.py ...
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.integrations.accelerate import attach_prepared, keep_with
from esper.integrations.held_out import held_out


def spirals(count: int, seed: int) -> TensorDataset:
    """Return points on two arms of a spiral, and which arm."""
    generator = torch.Generator().manual_seed(seed)
    arm = torch.randint(2, (count,), generator=generator)
    turn = 1 + 6 * torch.rand(count, generator=generator)
    points = torch.stack([turn * torch.sin(turn + arm * torch.pi), turn * torch.cos(turn + arm * torch.pi)], dim=1)
    return TensorDataset(points / 5, arm)


def losses(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Return one loss per example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def make_model() -> nn.Module:
    """Return a network that is too small for its task."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def train(
    steps: int, folder: Path, *, until: int | None = None, resume: bool = False, every: int = 10,
    watch: Callable[[esper.Growth], object] | None = None, **options: object,
) -> list[float]:  # fmt: skip
    """Train to a step, save, and return the losses of the steps taken.

    Args:
        steps: Optimizer steps of the whole run.
        folder: For the run and its state.
        until: Step after which to stop; the end by default.
        resume: Whether to go on from the state in the folder.
        every: Steps from one boundary to the next.
        watch: Called with the run after each step.
        options: Further arguments of ``esper.attach``.
    """
    order = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)  # so that an epoch can be entered anywhere
    accelerator = Accelerator(cpu=True, dataloader_config=order)
    model = esper.wrap(make_model(), example=torch.zeros(1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.999**step)
    loader = DataLoader(spirals(256, seed=0), batch_size=32, shuffle=True)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    growth = attach_prepared(
        accelerator, model, optimizer, schedule, validate=held_out(DataLoader(spirals(64, seed=1), batch_size=64), losses),
        every=every, steps=steps, budget="x20", root=folder, **options,
    )  # fmt: skip
    keep_with(accelerator, growth)
    taken: list[float] = []
    until = until or steps
    with growth:
        if resume:
            accelerator.load_state(str(folder / "state"))
        while growth.spent_steps < until:
            epoch, done = divmod(growth.spent_steps, len(loader))
            loader.set_epoch(epoch)
            for x, y in accelerator.skip_first_batches(loader, done):
                loss = F.cross_entropy(model(x), y)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                taken.append(float(loss.detach()))
                for event in growth.step(loss):
                    accelerator.print(event)
                if watch is not None:
                    watch(growth)
                if growth.spent_steps == until:
                    break
        accelerator.save_state(str(folder / "state"))
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("esper-runs/recipe"))
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    print(f"last loss {train(arguments.steps, arguments.folder, resume=arguments.resume)[-1]:.4f}")
