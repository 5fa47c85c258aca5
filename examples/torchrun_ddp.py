"""Grow a small classifier in two processes: ``torchrun --nproc-per-node 2 examples/torchrun_ddp.py``.

On GPUs the same file runs over NCCL, one process per device. With ``--fsdp`` the parameters are sharded instead.
"""

import argparse
import gc

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the group exists: its defaults would keep the one that does
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import esper

CLASSES, FEATURES = 4, 16


def make_model() -> nn.Module:
    """Return a network that is too small for its task."""
    torch.manual_seed(0)
    layers = (nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    return nn.Sequential(*layers)


def batch(seed: int, device: torch.device, size: int = 64) -> tuple[Tensor, Tensor]:
    """Return points and the class that a fixed rule gives them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, FEATURES, generator=generator)
    target = (x[:, :4] * x[:, 4:8] * x[:, 8:12].sign()).argmax(dim=1)
    return x.to(device), target.to(device)


def main() -> None:
    """Train in a process group, and end it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--root", default="./esper-runs")
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    train(options, rank, device)
    gc.collect()  # nothing may hold the group when it ends, or its threads outlive it
    dist.barrier()  # rank 0 has its services to close
    dist.destroy_process_group()


def train(options: argparse.Namespace, rank: int, device: torch.device) -> None:
    """Train, grow, and print what happened on rank 0."""
    on_gpu = device.type == "cuda"
    model = esper.wrap(make_model().to(device), example=batch(0, device)[0])
    if options.fsdp:
        net = fully_shard(model, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))
    else:
        net = DistributedDataParallel(model, device_ids=[device.index] if on_gpu else None)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    held_out = batch(10**6 + rank, device, size=256)  # each rank's own; a verdict counts all

    def validate(present: nn.Module) -> Tensor:
        return F.cross_entropy(present(held_out[0]), held_out[1], reduction="none")

    with esper.attach(
        net, optimizer, validate=validate, every=20, steps=options.steps, budget="x9", late="wait", root=options.root
    ) as growth:
        for step in range(options.steps):
            x, target = batch(step * dist.get_world_size() + rank, device)
            loss = F.cross_entropy(net(x), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for event in growth.step(loss):
                if rank == 0:
                    print(event, flush=True)


if __name__ == "__main__":
    main()
