"""A training on one rank of a test, as all scenarios begin with it."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import esper
from esper.blueprints import initial_state, pack_kernel
from esper.contracts.adaptation import Action, AdaptationDecision, SystemStatePacket
from esper.errors import EsperError
from esper.ir import REGISTRY, BlueprintIR
from esper.kasmina import placement_of, plan, topology
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import artifact_of, request_for, verdict_on
from esper.testing.zoo import ZOO, Batch, ZooHost


class Scripted:
    """Asks at given boundaries for a given blueprint at a given slot."""

    def __init__(self, wishes: dict[int, tuple[str, str]]) -> None:
        self._wishes = wishes

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        slot, blueprint = self._wishes.get(packet.boundary, ("", ""))
        for candidate in packet.candidates:
            if (candidate.slot, candidate.blueprint) == (slot, blueprint) and not candidate.masked:
                return AdaptationDecision(
                    action=Action.LOAD_KERNEL, reason="scripted", run_id=packet.run_id, target_layer=slot,
                    seed_idx=candidate.seed_idx, blueprint=blueprint, kernel_id=candidate.kernel_id,
                    topology_version=packet.topology_version,
                )  # fmt: skip
        return AdaptationDecision(reason="nothing wished", topology_version=packet.topology_version)


def stock(root: Path, host: ZooHost) -> None:
    """Put every kernel for a host into a library."""

    async def fill() -> None:
        found = plan(host.model(), host.batch().x, host.slots)
        async with await KernelManager.open(root / "library") as library:
            for graft in found.grafts:
                place = next(place for place in found.places if place.name == graft.slot)
                await library.submit(request_for(REGISTRY.build(graft.blueprint, place.site())))
            while (job := await library.claim("stock", lease_s=60)) is not None:
                ir = BlueprintIR.from_json(job.architecture_ir)
                seed, dtype = job.build.weight_seed, job.build.dtype
                data = pack_kernel(ir, initial_state(ir, seed=seed, dtype=dtype), seed=seed)
                artifact = artifact_of(job.blueprint_id, data)
                await library.complete(job.job_id, "stock", artifact, verdict_on(artifact))

    asyncio.run(fill())


class Rank:
    """A training on one rank, or on one process that has the data of all.

    Args:
        task: What the launcher asked for.
    """

    def __init__(self, task: SimpleNamespace, **ddp: Any) -> None:
        self.task = task
        self.host = ZOO[getattr(task, "host", "mlp")]
        self.model = esper.wrap(self.host.model(), self.host.slots, example=self.host.batch().x)
        self.ddp = ddp
        self.net = self.distributed() if task.size > 1 else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=200)
        self.harm = ""
        root = Path(task.folder) / "runs"
        if task.rank == 0 and not (root / "library").exists():
            stock(root, self.host)
        if task.size > 1:
            dist.barrier()
        self.root = root

    def distributed(self) -> nn.Module:
        return DistributedDataParallel(self.model, **self.ddp)

    @property
    def slots(self) -> list[str]:
        return list(placement_of(self.model).slots)

    def batch(self, step: int, rank: int) -> Batch:
        return self.host.batch(seed=1000 * step + rank)

    def batches(self, step: int) -> Batch:
        """Return this rank's batch; that of all where one process has them all."""
        if self.task.size > 1:
            return self.batch(step, self.task.rank)
        parts = [self.batch(step, rank) for rank in range(getattr(self.task, "shares", 1))]
        return Batch(torch.cat([part.x for part in parts]), torch.cat([part.target for part in parts]))

    def validate(self, model: nn.Module) -> Tensor:
        batch = self.batches(10**4)
        logits = model(batch.x)
        losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.target.reshape(-1), reduction="none")
        grown = {entry.slot for entry in topology(self.model)}
        return losses + (10.0 if self.harm in grown else 0.0)

    def attach(self, **changes: Any) -> Any:
        arguments: dict[str, Any] = {"every": 10, "steps": 200, "budget": "x99", "late": "wait", **changes}
        return esper.attach(
            self.net, self.optimizer, validate=self.validate, scheduler=self.schedule, root=self.root, **arguments
        )

    def step(self, step: int, growth: Any = None) -> float:
        batch = self.batches(step)
        self.optimizer.zero_grad()
        loss = self.host.loss(self.net, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        if growth is not None:
            growth.step(loss)
        return float(loss.detach())


def shortened(growth: Any) -> list[Any]:
    """Return what must be equal on every rank of each event."""
    return [
        [e.step, e.kind.value, e.slot, e.blueprint, e.kernel_id, e.decision_id, e.gain, e.gain_error, e.why]
        for e in growth.events
    ]


def digest_of_parameters(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, parameter in model.named_parameters():
        total.update(name.encode() + parameter.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def code_of(act: Callable[[], Any]) -> str:
    """Return the code of the error that something ends with."""
    try:
        act()
    except EsperError as error:
        return error.code
    return ""


def gloo_threads() -> list[str]:
    """Return the names of gloo's own threads that are alive; nothing where the system does not tell."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]
