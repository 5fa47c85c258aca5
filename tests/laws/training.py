"""A training of a host of the zoo with everything that a rollback and a resume must bring back."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

import esper
from esper.blueprints import initial_state, pack_kernel
from esper.ir import REGISTRY, BlueprintIR
from esper.kasmina import GraftEntry, placement_of, plan, topology
from esper.kasmina.morph import role_of
from esper.kasmina.quiet import capture_rng
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.snapshot import Subject
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.controllers import Silent
from esper.testing.forging import artifact_of, request_for, verdict_on
from esper.testing.zoo import ZOO, Batch, ZooHost

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3, amsgrad=True),
}
SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 0.97**step),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=60),
}
COMBINATIONS = [(optimizer, schedule) for optimizer in OPTIMIZERS for schedule in SCHEDULES]
EVERY_COMBINATION = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
EVERY_HOST_WITH_SOME_COMBINATION = pytest.mark.parametrize(
    ("host", "combination"),
    [(host, COMBINATIONS[index % len(COMBINATIONS)]) for index, host in enumerate(ZOO.values())],
    ids=ZOO,
)
"""Runs with real services take a tenth of a second to start: each host has one; parts are tried with all combinations."""
EVERY, STEPS = 4, 60


def reseed(seed: int) -> None:
    """Seed every global generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def on(device: str, batch: Batch) -> Batch:
    """Return a batch on a device."""
    return Batch(batch.x.to(device), batch.target.to(device))


class Loader:
    """Batches by position, as a stateful data loader gives them."""

    def __init__(self, host: ZooHost, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self._host, self._dtype, self._device = host, dtype, device
        self.position = 0

    def next(self) -> Batch:
        self.position += 1
        return on(self._device, self._host.batch(seed=self.position, dtype=self._dtype))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


class Average:
    """An exponential average of whatever parameters there are."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        before, self.values = self.values, {}
        for name, parameter in self._model.named_parameters():
            known = before.get(name, parameter)
            if known.shape != parameter.shape:  # another graft has its name now
                known = parameter
            self.values[name] = torch.lerp(known, parameter, 0.1)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.values)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = dict(state_dict)


@dataclass
class Training:
    """A host, and all that trains it.

    Attributes:
        host: The host.
        combination: Names of optimizer and schedule.
        seed: Of the weights.
        dtype: Of weights and inputs.
        amp: Whether it computes in bfloat16 under autocast.
        compiled: Whether the model is compiled in place.
        backend: What compiles it.
        device: Where it trains.
    """

    host: ZooHost
    combination: tuple[str, str]
    seed: int = 0
    dtype: torch.dtype = torch.float32
    amp: bool = False
    compiled: bool = False
    backend: str = "eager"
    device: str = "cpu"
    model: nn.Module = field(init=False)
    optimizer: Optimizer = field(init=False)
    schedule: LRScheduler = field(init=False)
    loader: Loader = field(init=False)
    average: Average = field(init=False)

    def __post_init__(self) -> None:
        host = self.host.model(seed=self.seed, dtype=self.dtype).to(self.device)
        example = on(self.device, self.host.batch(dtype=self.dtype))
        self.model = esper.wrap(host, self.host.slots, example=example.x)
        if self.compiled:
            self.model.compile(backend=self.backend)
        parameters = list(self.model.parameters())
        half = len(parameters) // 2
        groups = [{"params": parameters[:half]}, {"params": parameters[half:], "weight_decay": 0.01}]
        self.optimizer = OPTIMIZERS[self.combination[0]](groups)
        self.schedule = SCHEDULES[self.combination[1]](self.optimizer)
        self.loader, self.average = Loader(self.host, self.dtype, self.device), Average(self.model)

    @property
    def subject(self) -> Subject:
        return Subject(self.model, self.optimizer, self.schedule, (self.loader, self.average))

    @property
    def slots(self) -> list[str]:
        return list(placement_of(self.model).slots)

    def attach(self, root: Path, **changes: Any) -> Growth:
        """Start a real run on it."""
        batch = on(self.device, self.host.batch(seed=10**6, dtype=self.dtype))

        def validate(model: nn.Module) -> Tensor:
            logits = model(batch.x)
            return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.target.reshape(-1), reduction="none")

        arguments = {"every": EVERY, "steps": STEPS, "budget": "x99", "controller": Silent(), "root": root, **changes}
        growth: Growth = esper.attach(
            self.model, self.optimizer, validate=arguments.pop("validate", validate), scheduler=self.schedule,
            state=arguments.pop("state", (self.loader, self.average)), **arguments,
        )  # fmt: skip
        return growth

    def train(self, steps: int, growth: Growth | None = None) -> list[float]:
        """Train as anyone would, with clipping, and return the losses."""
        losses = []
        self.model.train()
        for _ in range(steps):
            # As augmentation does, so that every generator matters.
            scale = 1.0 + 0.1 * random.random() + 0.1 * float(np.random.rand())
            with torch.autocast(self.device, torch.bfloat16, enabled=self.amp):
                loss = scale * self.host.loss(self.model, self.loader.next())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.average.update()
            if growth is not None:
                growth.step(loss)
            losses.append(float(loss.detach()))
        return losses

    def picture(self) -> "Picture":
        """Return all that there is of it now."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = [
            {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        moments = {names[id(parameter)]: _copied(state) for parameter, state in self.optimizer.state.items()}
        rng = capture_rng()
        return Picture(
            topology=topology(self.model),
            classes=tuple((name, type(m).__qualname__, role_of(m)) for name, m in self.model.named_modules()),
            tensors=_copied(self.model.state_dict()),
            order=tuple(name for name, _ in self.model.named_parameters()),
            groups=_copied(groups),
            moments=moments,
            schedule={
                key: value for key, value in self.schedule.state_dict().items() if key != "_get_lr_called_within_step"
            },
            position=self.loader.position,
            average=_copied(self.average.values),
            rng=(str(rng.python), str(rng.numpy), rng.cpu),
        )


@dataclass(frozen=True)
class Picture:
    """Everything that a rollback restores."""

    topology: tuple[GraftEntry, ...]
    classes: tuple[tuple[str, str, type | None], ...]
    tensors: dict[str, Tensor]
    order: tuple[str, ...]
    groups: list[dict[str, Any]]
    moments: dict[str, Any]
    schedule: dict[str, Any]
    position: int
    average: dict[str, Tensor]
    rng: tuple[str, str, Tensor]

    def differences(self, other: "Picture", *, without: tuple[str, ...] = ()) -> list[str]:
        """Return the names of the parts that are not equal to the bit."""
        return [
            name for name in vars(self) if name not in without and not equal(getattr(self, name), getattr(other, name))
        ]


def equal(left: object, right: object) -> bool:
    """Tell whether two nested values are equal, tensors to the bit and mappings in order."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and left == right


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


async def _stock(root: Path) -> None:
    """Put a kernel for every slot and blueprint of the zoo into a library."""
    async with await KernelManager.open(root / "library") as library:
        for host in ZOO.values():
            found = plan(host.model(), host.batch().x, host.slots)
            for place in found.places:
                for name in {graft.blueprint for graft in found.grafts if graft.slot == place.name}:
                    await library.submit(request_for(REGISTRY.build(name, place.site())))
        while (job := await library.claim("stock", lease_s=60)) is not None:
            ir = BlueprintIR.from_json(job.architecture_ir)
            seed, dtype = job.build.weight_seed, job.build.dtype
            data = pack_kernel(ir, initial_state(ir, seed=seed, dtype=dtype), seed=seed)
            artifact = artifact_of(job.blueprint_id, data)
            await library.complete(job.job_id, "stock", artifact, verdict_on(artifact))


def stock(root: Path) -> Path:
    """Fill a library with every kernel that the zoo can use, without a forge, and return its root."""
    asyncio.run(_stock(root))
    return root
