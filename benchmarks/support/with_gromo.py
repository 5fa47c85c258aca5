"""The job as a user of GroMo does it: its own layers, its own loop, and an optimizer that begins anew after each growth."""

from collections.abc import Callable
from typing import Any

import torch
from gromo.containers.growing_mlp import GrowingMLP
from torch import nn
from torch.nn import functional

from benchmarks.support.mnist1d_mlp import CLASSES, GROWN_AT, NARROW, SIGNAL, WIDE, Job

TINY = {"alpha_zero": False, "use_covariance": True, "use_projection": True, "ignore_singular_values": False}
GRADMAX = {"alpha_zero": True, "use_covariance": False, "use_projection": False, "ignore_singular_values": True}
"""How the library's documentation sets its options for the papers (``GrowingModule.compute_optimal_updates``)."""
SCALES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Strengths of new neurons that are tried on the training data."""


def train_with_gromo(job: Job, widen: Callable[[GrowingMLP, int, int, Job], None]) -> nn.Module:
    """Train an MLP whose hidden layers are widened at set times."""
    torch.manual_seed(job.seed)
    model = GrowingMLP(SIGNAL, CLASSES, NARROW, 2, activation=nn.SELU(), device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step, batch in enumerate(job.batches(), 1):
        optimizer.param_groups[0]["lr"] = job.rate_at(step - 1)
        optimizer.zero_grad()
        functional.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
        if step in job.grown_at:
            for index in range(2):
                widen(model, index, (WIDE - NARROW) // len(GROWN_AT), job)
            optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    return model


def at_random(model: GrowingMLP, index: int, neurons: int, job: Job) -> None:
    """Add neurons in front of one layer that read at random and write nothing yet."""
    layer = model._growable_layers[index]
    layer.create_layer_extensions(neurons, output_extension_init="kaiming", input_extension_init="zeros")
    layer.apply_change(extension_size=neurons, scaling_factor=1.0)
    layer.delete_update()


def by_gradients(model: GrowingMLP, index: int, neurons: int, job: Job, how: dict[str, Any]) -> None:
    """Add neurons in front of one layer that the gradients of all training data ask for."""
    model.set_growing_layers(index=index)
    layer = model._growable_layers[index]
    model.init_computation()
    for rows in torch.arange(len(job.train.y)).split(512):
        model.zero_grad()
        functional.cross_entropy(model(job.train.x[rows]), job.train.y[rows], reduction="sum").backward()
        model.update_computation()
    model.compute_optimal_updates(compute_delta=False, maximum_added_neurons=neurons, statistical_threshold=0.0, **how)
    model.reset_computation()
    layer.apply_change(scaling_factor=best_scale(model, layer, job))
    layer.delete_update()


@torch.no_grad()
def best_scale(model: GrowingMLP, layer: Any, job: Job) -> float:
    """Return the strength of the new neurons that suits the training data best."""
    losses = {}
    for scale in SCALES:
        layer.scaling_factor = scale
        losses[scale] = float(functional.cross_entropy(model.extended_forward(job.train.x), job.train.y))
    return min(losses, key=lambda scale: losses[scale])
