"""Gradients of newborns in every way in which DDP may be used."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import esper
from esper.blueprints import initial_state, pack_kernel
from esper.errors import ConfigError
from esper.ir import REGISTRY, digest_of
from esper.kasmina import join, placement_of
from esper.services.tolaria.distributed.reducer import reducer_of
from tests.distributed.training import digest_of_parameters


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
