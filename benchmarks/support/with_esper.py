"""The job as a user of Esper does it: the user's own model and loop, grown by the default controller."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

import esper
from benchmarks.support.mnist1d_mlp import NARROW, WIDE, Job, each_loss, mlp, num_params


def train_with_esper(job: Job, root: Path) -> nn.Module:
    """Train an MLP that may grow by as many parameters as the wide one has more."""
    model = esper.wrap(mlp(NARROW, job.seed), example=job.train.x[:2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.rate, weight_decay=0.0)
    schedule = LambdaLR(optimizer, lambda step: job.rate_at(step) / job.rate)
    budget = esper.Budget(params=num_params(mlp(WIDE, job.seed)) - num_params(model))
    with esper.attach(
        model, optimizer, validate=lambda model: each_loss(model, job.validation), every=job.steps // 20,
        steps=job.steps, scheduler=schedule, budget=budget, late="wait", root=root,
    ) as growth:  # fmt: skip
        for batch in job.batches():
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(batch.x), batch.y)
            loss.backward()
            optimizer.step()
            schedule.step()
            growth.step(loss)
    return model


def train_alone(job: Job, width: int) -> nn.Module:
    """Train an MLP that keeps its size."""
    model = mlp(width, job.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.rate, weight_decay=0.0)
    for step, batch in enumerate(job.batches()):
        optimizer.param_groups[0]["lr"] = job.rate_at(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
    return model
