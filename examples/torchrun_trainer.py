"""Let the trainer grow a classifier in two processes: ``torchrun --nproc-per-node 2 examples/torchrun_trainer.py``.

Every process makes the same loaders, and the trainer shares them out. Run it again with ``--resume`` to go on where it ended,
or was stopped with Ctrl-C.
"""

import argparse
import gc

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the group exists: its defaults would keep the one that does
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import esper

CLASSES, FEATURES = 4, 16


def examples(count: int, seed: int) -> TensorDataset:
    """Return points and the class that a fixed rule gives them."""
    x = torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, :4] * x[:, 4:8] * x[:, 8:12].sign()).argmax(dim=1))


def train(options: argparse.Namespace) -> None:
    """Train, grow, and print on rank 0 what came of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    config = esper.TrainerConfig(
        num_epochs=options.epochs, learning_rate=3e-3, metrics=("accuracy",), budget="x9", root=options.root,
        resume="latest" if options.resume else None, attach={"late": "wait"},
    )  # fmt: skip
    report = esper.Trainer(config).fit(
        model,
        DataLoader(examples(4000, seed=0), batch_size=64, shuffle=True),  # 64 in each process
        DataLoader(examples(1000, seed=1), batch_size=250),
    )
    if dist.get_rank() == 0:
        print(f"{report.ended} after {report.steps} steps in {report.folder}")


def main() -> None:
    """Train in a process group, and end it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--root", default="./esper-runs")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    try:
        train(options)
    finally:
        gc.collect()  # nothing may hold the group when it ends, or its threads outlive it
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
