"""One rank of a test: ``python -m tests.distributed.worker '{"scenario": ..., "rank": ...}'``."""

import asyncio
import gc
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the group exists, or its defaults keep the group
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.blueprints import initial_state, pack_kernel
from esper.contracts.adaptation import Action, AdaptationDecision, SystemStatePacket
from esper.errors import ConfigError, EsperError
from esper.ir import REGISTRY, BlueprintIR, digest_of
from esper.kasmina import join, placement_of, plan, topology
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.distributed.reducer import reducer_of
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import artifact_of, request_for, verdict_on
from esper.testing.zoo import ZOO, Batch, ZooHost

SCENARIOS: dict[str, Callable[[SimpleNamespace], Any]] = {}


def scenario(function: Callable[[SimpleNamespace], Any]) -> Callable[[SimpleNamespace], Any]:
    """Make a function known by its name."""
    SCENARIOS[function.__name__] = function
    return function


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


@scenario
def whole_run(task: SimpleNamespace) -> Any:
    """200 steps with three grafts, a cull and a rollback; the digest at every boundary."""
    rank = Rank(task)
    first, second, third = rank.slots[:3]
    rank.harm = first
    blueprint = task.blueprint
    growth = rank.attach(controller=Scripted({4: (first, blueprint), 11: (second, blueprint)}))
    digests, losses, undo = [], [], None
    with growth:
        for step in range(1, 201):
            losses.append(rank.step(step, growth))
            if step == 135:
                undo = growth.graft(third, blueprint)
            if step == 155:
                growth.rollback(undo)
            if step % 10 == 0:
                digests.append(growth.digest())
        counts = {"threads": sum("esper" in t.name for t in threading.enumerate())}
    folder = rank.root / growth.run_id
    return {
        "digests": digests, "losses": losses, "events": shortened(growth), **counts,
        "history": [[p.train, p.validation] for p in growth._engine.trials.position.history],
        "written": (folder / "events.jsonl").exists(), "run": growth.run_id,
        "state": {n: p.detach().double().sum().item() for n, p in rank.model.named_parameters()},
    }  # fmt: skip


def kernel_for(model: nn.Module, slot: str, blueprint: str) -> tuple[bytes, str]:
    ir = REGISTRY.build(blueprint, placement_of(model).place(slot).site())
    data = pack_kernel(ir, initial_state(ir, seed=3, dtype=torch.float32), seed=3)
    return data, digest_of(data)


class Branching(nn.Module):
    """A model that may leave its second layer out, and may run its first checkpointed."""

    def __init__(self, checkpointed: bool | None = None) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.checkpointed, self.skips = checkpointed, False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.first(x)
        if not self.skips:
            h = h + (self.second(h) if self.checkpointed is None else self._recomputed(h))
        return {"logits": self.head(torch.relu(h))}

    def _recomputed(self, h: Tensor) -> Tensor:
        result: Tensor = checkpoint(self.second, h, use_reentrant=self.checkpointed)
        return result


class Reduced:
    """A grown model in DDP, and its gradients held against the mean of what each rank computes on its own."""

    def __init__(self, task: SimpleNamespace, *, checkpointed: bool | None = None, **ddp: Any) -> None:
        self.rank = task.rank
        torch.manual_seed(0)
        self.model = esper.wrap(Branching(checkpointed), ["first", "second"], example=torch.randn(4, 5))
        self.net = DistributedDataParallel(self.model, **ddp)
        self.reducer = reducer_of(self.net)
        for slot in ("first", "second"):
            data, kernel_id = kernel_for(self.model, slot, "mlp_adapter")
            join(self.model, slot, 0, data, kernel_id=kernel_id)
        for parameter in self.newborns.values():  # past the birth, where most gradients are zero
            with torch.no_grad():
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
        self.reducer.follow()

    @property
    def newborns(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if "esper_grafts" in name}

    def loss(self, net: nn.Module, seed: int, rows: int = 6) -> Tensor:
        generator = torch.Generator().manual_seed(100 * seed + self.rank)
        x, target = torch.randn(rows, 5, generator=generator), torch.randint(3, (rows,), generator=generator)
        return F.cross_entropy(net(x)["logits"], target)

    def local(self, *seeds: int, rows: int = 6) -> dict[str, Tensor]:
        """Return the gradients that this rank computes without DDP, summed over batches; nothing is accumulated."""
        total: dict[str, Tensor] = {}
        checkpointed, self.model.checkpointed = (
            self.model.checkpointed,
            None,
        )  # its reentrant form knows .backward() only
        for seed in seeds:
            names, parameters = zip(*self.model.named_parameters(), strict=True)
            found = torch.autograd.grad(self.loss(self.model, seed, rows), parameters, allow_unused=True)
            for name, parameter, gradient in zip(names, parameters, found, strict=True):
                value = torch.zeros_like(parameter) if gradient is None else gradient
                total[name] = total.get(name, 0) + value
        self.model.checkpointed = checkpointed
        return total

    def expected(self, *seeds: int, rows: int = 6) -> dict[str, Tensor]:
        means = self.local(*seeds, rows=rows)
        for gradient in means.values():
            dist.all_reduce(gradient)
            gradient.div_(2)
        return means

    def odd(self, expected: dict[str, Tensor]) -> list[str]:
        """Return the names of the parameters whose gradient is not what was expected."""
        return [
            name for name, parameter in self.model.named_parameters()
            if parameter.grad is None or not torch.allclose(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)
        ]  # fmt: skip

    def one(self, seed: int = 1, rows: int = 6) -> list[str]:
        expected = self.expected(seed, rows=rows)
        self.net.zero_grad()
        self.loss(self.net, seed, rows).backward()
        return self.odd(expected)


@scenario
def reduced(task: SimpleNamespace) -> Any:
    """Newborn gradients in every way in which DDP may be used; an empty list is no difference."""
    found: dict[str, Any] = {"plain": Reduced(task).one()}
    found["uneven batches"] = Reduced(task).one(rows=3 + 4 * task.rank)
    found["bucket view"] = Reduced(task, gradient_as_bucket_view=True).one()
    static = Reduced(task, static_graph=True)
    found["static graph"] = [*static.one(1), *static.one(2)]
    found["checkpointed"] = Reduced(task, checkpointed=False).one()
    reentrant = Reduced(task, checkpointed=True, static_graph=True)
    found["checkpointed, reentrant"] = [*reentrant.one(1), *reentrant.one(2)]
    found["accumulated"] = _accumulated(Reduced(task))
    found["unused here"] = _unused(Reduced(task, find_unused_parameters=True), skips=task.rank == 1)
    found["unused anywhere"] = _unused(Reduced(task, find_unused_parameters=True), skips=True)
    found["overflow"] = _overflown(Reduced(task))
    found["join"] = _joined(Reduced(task))
    faulty = Reduced(task)
    faulty.reducer._marks.clear()
    found["without the reducer"] = faulty.one()
    return found


def _accumulated(host: Reduced) -> list[str]:
    expected = host.expected(1, 2, 3)
    with host.net.no_sync():
        host.loss(host.net, 1).backward()
        host.loss(host.net, 2).backward()
    local = host.local(1, 2)
    early = host.odd(local)
    host.loss(host.net, 3).backward()
    return early + host.odd(expected)


def _unused(host: Reduced, *, skips: bool) -> list[str]:
    host.model.skips = skips
    expected = host.expected(1)
    host.loss(host.net, 1).backward()
    return sorted(set(host.odd(expected)))


def _overflown(host: Reduced) -> list[Any]:
    """Scale the loss of one rank past what its type can hold: both must skip the step, and lower the scale alike."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(host.newborns.values(), lr=0.1)
    before = digest_of_parameters(host.model)
    loss = host.loss(host.net, 1) * (float("inf") if host.rank == 1 else 1.0)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(host.model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    return [digest_of_parameters(host.model) == before, scaler.get_scale()]


def _joined(host: Reduced) -> str:
    try:
        with host.net.join():
            host.loss(host.net, 1)
    except ConfigError as error:
        return error.code
    return ""


@scenario
def trained(task: SimpleNamespace) -> Any:
    """Train with a graft by hand; with one process on the data of all, or with each on its own."""
    rank = Rank(task)
    growth = rank.attach(controller=Scripted({}), steps=60)
    losses = []
    with growth:
        for step in range(1, 61):
            if step == 20:
                growth.graft(rank.slots[0], "mlp_adapter")
                if getattr(task, "faulty", False):
                    reducer_of(rank.net)._marks.clear()
            losses.append(rank.step(step, growth))
        return {
            "losses": losses, "digest": growth.digest(),
            "validation": [p.validation for p in growth._engine.trials.position.history],
            "parameters": {name: p.detach().flatten().tolist() for name, p in rank.model.named_parameters()},
        }  # fmt: skip


class Noise:
    """Something of a rank's own in ``state=``: how many batches it drew, and from where."""

    def __init__(self, rank: int) -> None:
        self.position, self.rank = 0, rank

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "rank": self.rank}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position, self.rank = state_dict["position"], state_dict["rank"]


def _resumable(task: SimpleNamespace) -> tuple[Rank, Noise, Any]:
    rank, noise = Rank(task), Noise(task.rank)
    growth = rank.attach(controller=Scripted({3: (rank.slots[0], task.blueprint)}), state=(noise,), steps=100)
    return rank, noise, growth


def _train(rank: Rank, noise: Noise, growth: Any, steps: range, *, dies: bool = False) -> list[str]:
    digests = []
    for step in steps:
        if dies and rank.task.rank == 1 and step == 40:
            growth._engine.trials.join = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        noise.position += 1
        rank.step(step, growth)
        drawn = torch.rand(())
        digests.append(f"{growth.digest()} {float(drawn)} {noise.position} {noise.rank}")
    return digests


@scenario
def unbroken(task: SimpleNamespace) -> Any:
    """A run that is saved after 55 steps, and goes on to 80."""
    rank, noise, growth = _resumable(task)
    with growth:
        _train(rank, noise, growth, range(1, 56))
        state = growth.state_dict()
        if task.rank == 0:
            CheckpointManager(Path(task.folder) / "saved").save(state, step=55)
        return {"after": _train(rank, noise, growth, range(56, 81)), "events": shortened(growth)}


@scenario
def resumed(task: SimpleNamespace) -> Any:
    """The same run from its checkpoint on, in processes of its own."""
    torch.manual_seed(77 + task.rank)
    rank, noise, growth = _resumable(task)
    with growth:
        growth.load_state_dict(CheckpointManager(Path(task.folder) / "saved").load("latest"))
        return {"after": _train(rank, noise, growth, range(56, 81)), "events": shortened(growth)}


@scenario
def dying(task: SimpleNamespace) -> Any:
    """A run that is saved after 25 steps; rank 1 is killed when its graft is about to join at step 40."""
    rank, noise, growth = _resumable(task)
    with growth:
        _train(rank, noise, growth, range(1, 26))
        state = growth.state_dict()
        if task.rank == 0:
            CheckpointManager(Path(task.folder) / "saved").save(state, step=25)
        _train(rank, noise, growth, range(26, 61), dies=True)


@scenario
def restarted(task: SimpleNamespace) -> Any:
    """What a restart makes of that: the graft joins after all."""
    rank, noise, growth = _resumable(task)
    with growth:
        growth.load_state_dict(CheckpointManager(Path(task.folder) / "saved").load("latest"))
        return {"after": _train(rank, noise, growth, range(26, 61)), "events": shortened(growth)}


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


@scenario
def sharded(task: SimpleNamespace) -> Any:
    """Grafts by a controller and by hand, a cull, a rollback and a resume, under FSDP2."""
    rank = Sharded(task) if task.size > 1 else Rank(task)
    first, second = rank.slots[:2]
    rank.harm = first
    growth = rank.attach(controller=Scripted({4: (first, task.blueprint)}), steps=120)
    found: dict[str, Any] = {"losses": []}
    with growth:
        for step in range(1, 121):
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


def code_of(act: Callable[[], Any]) -> str:
    """Return the code of the error that something ends with."""
    try:
        act()
    except EsperError as error:
        return error.code
    return ""


@scenario
def refused(task: SimpleNamespace) -> Any:
    """Everything that is refused, with its code."""
    rank = Rank(task)
    net, optimizer, validate = rank.net, rank.optimizer, rank.validate
    found: dict[str, Any] = {"wrapped": code_of(lambda: esper.wrap(net))}
    rank.net = rank.model
    found["bare"] = code_of(rank.attach)
    rank.net = net
    found["incubate"] = code_of(lambda: rank.attach(incubate=5))
    rank.optimizer = ZeroRedundancyOptimizer(rank.model.parameters(), torch.optim.SGD, lr=0.1)
    found["zero"] = code_of(rank.attach)
    rank.optimizer = optimizer
    with rank.attach(controller=Scripted({})) as growth:
        found["load_kernel"] = code_of(lambda: asyncio.run(rank.model.load_kernel(rank.slots[0], 0, "sha256:0")))
        found["no such blueprint"] = code_of(lambda: growth.graft(rank.slots[0], "nonsense"))
        state = growth.state_dict()
        found["fewer ranks"] = code_of(lambda: growth.load_state_dict({**state, "ranks": 3}))
        rank.validate = lambda model: validate(model).mean() if task.rank == 1 else validate(model)
        growth._engine.observer.held_out._validate = rank.validate
        seen = code_of(lambda: growth.graft(rank.slots[0], "mlp_adapter"))
        found["bad validate"] = sorted([code.decode() for code in growth._subject.team.gather_bytes(seen.encode())])[
            ::-1
        ]
    plain = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    data = DataLoader(TensorDataset(torch.rand(8, 2), torch.zeros(8, dtype=torch.long)), batch_size=4)
    trainer = esper.Trainer(esper.TrainerConfig(root=f"{task.folder}/trainer", progress=False))
    found["trainer"] = code_of(lambda: trainer.fit(plain, data))
    assert not hasattr(plain, "load_kernel"), "it was wrapped before it was refused"
    return found


def main() -> None:
    task = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(task.rank)
    if task.size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{task.place}/rendezvous", rank=task.rank, world_size=task.size,
            timeout=timedelta(seconds=getattr(task, "timeout_s", 30)),
        )  # fmt: skip
    result = SCENARIOS[task.scenario](task)
    (Path(task.place) / f"rank{task.rank}.json").write_text(json.dumps(result))
    if task.size > 1:
        gc.collect()  # a DDP that is still there would keep the group, and with it gloo's threads
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
