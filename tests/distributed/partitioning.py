"""The same run with an optimizer whose moments are partitioned over the ranks, and with the optimizer itself."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from esper.services.tolaria import optimizer as surgery
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.distributed import partition
from tests.distributed.training import Rank, Scripted, digest_of_parameters, shortened

KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"lr": 3e-3}),
    "adagrad": (torch.optim.Adagrad, {"lr": 3e-2, "initial_accumulator_value": 0.1}),
}


def _optimizer(task: SimpleNamespace, parameters: list[Any]) -> Optimizer:
    kind, options = KINDS[task.optimizer]
    half = len(parameters) // 2
    groups = [{"params": parameters[:half]}, {"params": parameters[half:], "weight_decay": 0.01}]
    if not task.partitioned:
        return kind(groups, **options)
    return ZeroRedundancyOptimizer(groups, kind, parameters_as_bucket_view=task.bucket_view, **options)


def _told(growth: Any) -> dict[str, Any]:
    """Return digests of the model, of every moment by name, of what learns apart, and whose moments lie on this rank."""
    moments = growth.state_dict()["training"]["moments"]
    total = hashlib.sha256()
    for name in sorted(moments):
        for key in sorted(moments[name]):
            value = moments[name][key]
            data = value.contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
            total.update(f"{name}.{key}".encode() + data)
    named = {id(p): name for name, p in growth._subject.model.named_parameters()}
    held = [named[id(p)] for p in partition.holder_of(growth._subject.optimizer).state]
    return {
        "model": digest_of_parameters(growth._subject.model), "moments": total.hexdigest(),
        "names": sorted(moments), "held": sorted(held), "apart": _apart(growth),
    }  # fmt: skip


def _apart(growth: Any) -> list[str]:
    """Return a digest of every kernel that learns apart, with its moments."""
    digests = []
    for apprentice in growth._engine.trials.incubator.apprentices.values():
        moments = [value for each in apprentice.moments.values() for value in each.values()]
        tensors = [*apprentice.kernel.state_dict().values(), *moments]
        digests.append(
            hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()
        )
    return digests


def _without_travel(optimizer: Optimizer, before: dict[Tensor, Any]) -> dict[Tensor, Any]:
    """Return what this rank still has: moments whose owner changed are lost."""
    mine = {id(p) for group in partition.holder_of(optimizer).param_groups for p in group["params"]}
    return {parameter: moments for parameter, moments in before.items() if id(parameter) in mine}


def _grown(task: SimpleNamespace, controller: Scripted | None = None) -> tuple[Rank, Any]:
    """Return a run whose first graft, by the controller, will be culled while a later one stays."""
    rank = Rank(task)
    rank.optimizer = _optimizer(task, list(rank.model.parameters()))
    rank.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rank.optimizer, T_max=200)
    controller = controller or Scripted({3: (rank.slots[0], task.blueprint)})
    return rank, rank.attach(controller=controller, steps=140, on_cull="continue")


def lived(task: SimpleNamespace) -> Any:
    """Live through all that there is, and tell of it every ten steps.

    A graft by a controller, two by hand, of which the first may learn apart before, the cull of the first, the rollback of the
    last, and a save.
    """
    rank, growth = _grown(task)
    first, second, third = rank.slots[:3]
    rank.harm, told, undo = first, [], None
    with growth:
        for step in range(1, 121):
            if step == 45:
                growth.graft(second, task.blueprint, incubate=task.incubate)
            if step == 105:
                undo, before = growth.graft(third, task.blueprint), _told(growth)
            if step == 108:
                growth.rollback(undo)
            if getattr(task, "faulty", False) and step == 58:
                surgery.moved = _without_travel
            rank.step(step, growth)
            if step % 10 == 0 or step == 108:
                told.append(_told(growth))
            if step == task.save_at:
                state = growth.state_dict()
                if task.rank == 0:
                    CheckpointManager(Path(task.folder) / f"saved-{task.partitioned}").save(state, step=step)
    return {
        "told": told,
        "events": shortened(growth),
        "before": before,
        "hooks": len(rank.optimizer._optimizer_step_pre_hooks),
    }


def continued(task: SimpleNamespace) -> Any:
    """The same run from where it was saved, in processes of its own."""
    torch.manual_seed(77 + task.rank)
    rank, growth = _grown(task)
    rank.harm, told = rank.slots[0], []
    with growth:
        growth.load_state_dict(CheckpointManager(Path(task.folder) / f"saved-{task.partitioned}").load("latest"))
        for step in range(task.save_at + 1, 105):
            rank.step(step, growth)
            if step % 10 == 0:
                told.append(_told(growth))
    return {"told": told}
