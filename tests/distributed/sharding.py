"""Growth under FSDP2."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from esper.services.tolaria.checkpoint import CheckpointManager
from tests.distributed.training import Rank, Scripted, code_of, shortened


class Sharded(Rank):
    """The same training on parameters of which each rank holds a share."""

    def distributed(self) -> nn.Module:
        mesh = init_device_mesh("cpu", (self.task.size,))
        for slot in self.slots:
            fully_shard(self.model.get_submodule(slot), mesh=mesh)
        return fully_shard(self.model, mesh=mesh)


def whole(model: nn.Module) -> dict[str, list[float]]:
    """Return every parameter, gathered from all ranks."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().flatten().tolist()
        for name, p in model.named_parameters()
    }


def sharded(task: SimpleNamespace) -> Any:
    """Grafts by a controller and by hand, a cull, a rollback and a resume, under FSDP2."""
    rank = Sharded(task) if task.size > 1 else Rank(task)
    first, second = rank.slots[:2]
    rank.harm = first
    growth = rank.attach(controller=Scripted({4: (first, task.blueprint)}), steps=120)
    found: dict[str, Any] = {"losses": []}
    with growth:
        for step in range(1, 121):
            if step == 70 and task.size > 1:
                found["apart"] = code_of(lambda: growth.graft(second, task.blueprint, incubate=3))
            if step == 75:
                before, whole_before = growth.digest(), whole(rank.model)
                undo = growth.graft(second, task.blueprint)
                placed = {type(p).__name__ for n, p in rank.model.named_parameters() if "esper_grafts" in n}
            if step == 85:
                growth.rollback(undo)
                found["undone"] = growth.digest() == before and whole(rank.model) == whole_before
                growth.unlock(second)
            if step == 95:
                growth.graft(second, task.blueprint)
            if step == 105:
                state = growth.state_dict()
                CheckpointManager(Path(task.place) / f"saved{task.rank}").save(state, step=step)
                at = growth.digest()
            found["losses"].append(rank.step(step, growth))
        end = growth.digest()
        growth.load_state_dict(CheckpointManager(Path(task.place) / f"saved{task.rank}").load("latest"))
        found["loaded"] = growth.digest() == at
        for step in range(105, 121):
            rank.step(step, growth)
        found["resumed"] = growth.digest() == end
        found |= {"events": shortened(growth), "parameters": whole(rank.model), "placed": sorted(placed)}
        found["validation"] = [p.validation for p in growth._engine.trials.position.history]
    return found
