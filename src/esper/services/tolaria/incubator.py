"""Kernels that learn apart before they join, each with an optimizer of its own that the user's never meets (law 3)."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.blueprints import KernelModule
from esper.contracts.adaptation import AdaptationDecision
from esper.kasmina.graft import prepared, rebuilt
from esper.kasmina.incubation import Incubation, inside_compiled, plant, uproot
from esper.kasmina.placement import placement_of
from esper.services.tolaria.copies import copied
from esper.services.tolaria.distributed.partition import holder_of
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.kernels import ReadyKernel
from esper.services.tolaria.optimizer import REFUSED, host_group_of
from esper.services.tolaria.optimizer_state import (
    LIKE,
    NAMES,
    GroupState,
    Moments,
    OptimizerState,
    capture_optimizer,
    restore_optimizer,
)

Place: TypeAlias = tuple[str, int]


@dataclass
class Apprentice:
    """A kernel that learns apart, and the decision behind it.

    Attributes:
        decision: Names slot, seed and blueprint.
        ready: The kernel as it came from the forge, without its bytes.
        kernel: What learns.
        incubation: How it is tied to its slot.
        optimizer: Its own; of the host optimizer's class, where that can be made for it.
        like: The host group whose options it follows.
        left: Optimizer steps that it is still to learn.
        taken: Optimizer steps that it has learned.
    """

    decision: AdaptationDecision
    ready: ReadyKernel
    kernel: KernelModule
    incubation: Incubation
    optimizer: Optimizer
    like: int
    left: int
    taken: int = 0

    @property
    def moments(self) -> dict[str, Moments]:
        """Its moments by the name of the parameter in the kernel."""
        return capture_optimizer(self.optimizer, dict(self.kernel.named_parameters())).moments


@dataclass
class Incubator:
    """Everything that learns apart in one run; it moves with the training as whatever is in ``state=`` does.

    The optimizer of an apprentice is of the host optimizer's own class and follows its options at every step, the learning
    rate that a schedule sets included: what it learned, and its moments, then fit the group that it joins. A class that
    cannot be made for a kernel (it needs a closure, or is the user's own) gives way to AdamW where the host's group has
    ``betas``, to SGD otherwise, at the host's learning rate.

    Args:
        model: Wrapped.
        host: The user's optimizer; only its options are read.
        scaler: The user's gradient scaler, if it is in ``state=``: gradients are unscaled for an apprentice.
        team: The processes that train: an apprentice learns from the mean of their gradients, and is the same in each.
        whole: Whether the model is trained through what ``torch.compile(model)`` returned.
    """

    model: nn.Module
    host: Optimizer
    scaler: "torch.amp.GradScaler | None" = None
    team: Team = field(default_factory=Team)
    whole: bool = False
    apprentices: dict[Place, Apprentice] = field(default_factory=dict)
    _kept: bool = False

    @classmethod
    def beside(
        cls,
        model: nn.Module,
        host: Optimizer,
        others: Iterable[object],
        team: Team | None = None,
        *,
        whole: bool = False,
    ) -> "Incubator":
        """Return an empty incubator for a training with these things in ``state=``."""
        scaler = next((other for other in others if isinstance(other, torch.amp.GradScaler)), None)
        return cls(model, host, scaler, team or Team(), whole)

    def take_in(self, decision: AdaptationDecision, ready: ReadyKernel, *, steps: int) -> Apprentice:
        """Let a kernel learn apart.

        Raises:
            KernelRejected: If the bytes are not that kernel.
            ConfigError: If it does not fit the slot, or nothing can learn apart in this training.
        """
        if self.whole:
            raise inside_compiled(str(decision.target_layer))
        slot, seed_idx = str(decision.target_layer), decision.seed_idx
        kernel = prepared(self.model, slot, seed_idx, ready.data, kernel_id=ready.kernel_id)
        like = host_group_of(self.host, placement_of(self.model).place(slot).module.parameters())
        named = ReadyKernel(ready.kernel_id, ready.blueprint, b"", ready.latency_ms)
        return self._planted(kernel, decision, named, like=like, left=steps)

    def step(self, *, look: bool) -> list[tuple[Apprentice, str]]:
        """Take one optimizer step for every apprentice.

        Args:
            look: Whether to read what waits on an accelerator too, which waits for it.

        Returns:
            Those that cannot go on, taken out, with the reason.
        """
        failed = []
        for apprentice in list(self.apprentices.values()):
            why = self._agreed_ailment(apprentice.incubation, look=look)
            if why is None:
                self._step(apprentice)
            else:
                self.release(apprentice)
                failed.append((apprentice, why))
        return failed

    def release(self, apprentice: Apprentice) -> None:
        """Take a kernel out of the incubator: it is about to join, or has failed."""
        slot, seed_idx = str(apprentice.decision.target_layer), apprentice.decision.seed_idx
        uproot(self.model, slot, seed_idx)
        del self.apprentices[slot, seed_idx]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let what learns apart stay as it is inside the block, while a state of the training is put back."""
        self._kept = True
        try:
            yield
        finally:
            self._kept = False

    def state_dict(self) -> dict[str, Any]:
        """Return everything that learns apart as plain data and tensors."""
        return {"apprentices": [_described(apprentice) for apprentice in self.apprentices.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let exactly what ``state_dict`` returned learn apart, where and as it did then."""
        if self._kept:
            return
        for apprentice in list(self.apprentices.values()):
            self.release(apprentice)
        for saved in state_dict["apprentices"]:
            self._resume(saved)

    def learned(self, apprentice: Apprentice) -> bool:
        """Tell whether a gradient has reached a kernel, in whichever process."""
        return self.team.any(apprentice.incubation.passes > 0)

    def _agreed_ailment(self, incubation: Incubation, *, look: bool) -> str | None:
        """Return why a kernel cannot go on in one of the processes, or None."""
        own = _ailment(incubation, look=look)
        words = self.team.gather_bytes((own or "").encode())
        return next((word.decode() for word in words if word), None)

    def _step(self, apprentice: Apprentice) -> None:
        self.team.average(list(apprentice.kernel.parameters()))
        _follow(apprentice.optimizer, self.host.param_groups[apprentice.like], alike=self._alike(apprentice))
        _move_moments(apprentice.optimizer)
        apprentice.optimizer.step()
        apprentice.optimizer.zero_grad()
        apprentice.left -= 1
        apprentice.taken += 1

    def _alike(self, apprentice: Apprentice) -> bool:
        return type(apprentice.optimizer) is type(holder_of(self.host))

    def _planted(
        self, kernel: KernelModule, decision: AdaptationDecision, ready: ReadyKernel, *, like: int, left: int
    ) -> Apprentice:
        slot, seed_idx = str(decision.target_layer), decision.seed_idx
        blueprint = ready.blueprint or decision.blueprint or ""
        scale = None if self.scaler is None else self._loss_scale
        incubation = Incubation(kernel, ready.kernel_id, blueprint, kernel.ir.reads, scale)
        optimizer = _own_optimizer(self.host, like, list(kernel.parameters()))
        plant(self.model, slot, seed_idx, incubation)
        apprentice = Apprentice(decision, ready, kernel, incubation, optimizer, like, left)
        self.apprentices[slot, seed_idx] = apprentice
        return apprentice

    def _loss_scale(self, device: torch.device) -> Tensor:
        assert self.scaler is not None
        return self.scaler.scale(torch.ones((), device=device))

    @torch.no_grad()
    def _resume(self, saved: dict[str, Any]) -> None:
        decision = AdaptationDecision(**saved["decision"])
        kernel = rebuilt(self.model, str(decision.target_layer), saved["ir"])
        ready = ReadyKernel(saved["kernel_id"], saved["blueprint"], b"", saved["latency_ms"])
        apprentice = self._planted(kernel, decision, ready, like=saved["like"], left=saved["left"])
        apprentice.taken = saved["taken"]
        apprentice.incubation.passes, apprentice.incubation.failure = saved["passes"], saved["failure"]
        kernel.load_state_dict(saved["tensors"])
        for name, parameter in kernel.named_parameters():
            gradient = saved.get("gradients", {}).get(name)
            parameter.grad = None if gradient is None else torch.empty_like(parameter).copy_(gradient)
        groups = tuple(GroupState(group["options"], tuple(group["names"])) for group in saved["groups"])
        state = OptimizerState(groups, saved["moments"])
        restore_optimizer(apprentice.optimizer, state, dict(kernel.named_parameters()))


def _ailment(incubation: Incubation, *, look: bool) -> str | None:
    """Return why a kernel cannot go on, or None."""
    if incubation.failure is not None:
        return incubation.failure
    sick = incubation.sick
    if sick is not None and (look or sick.device.type == "cpu"):
        incubation.sick = None
        if bool(sick):
            return "it returned values that are not finite"
    return None


def _own_optimizer(host: Optimizer, like: int, parameters: list[nn.Parameter]) -> Optimizer:
    group = host.param_groups[like]
    kind = type(holder_of(host))
    if kind.__module__.startswith("torch.optim.") and kind.__name__ not in REFUSED:
        accepted = inspect.signature(kind).parameters
        return kind(parameters, **{key: value for key, value in group.items() if key in accepted and key != "params"})
    if "betas" in group:
        return torch.optim.AdamW(parameters, lr=group["lr"], weight_decay=group.get("weight_decay", 0.0))
    return torch.optim.SGD(parameters, lr=group["lr"], momentum=0.9)


def _follow(own: Optimizer, host_group: dict[str, Any], *, alike: bool) -> None:
    keys = host_group.keys() - {"params", "name", LIKE, NAMES} if alike else {"lr"}
    for group in own.param_groups:
        group.update({key: copied(host_group[key]) for key in sorted(keys)})


def _move_moments(optimizer: Optimizer) -> None:
    """Let moments lie where their parameters lie, after a ``model.to(device)``; a step count stays where it is."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.device != parameter.device:
                state[key] = value.to(parameter.device)


def _described(apprentice: Apprentice) -> dict[str, Any]:
    kernel, incubation = apprentice.kernel, apprentice.incubation
    own = capture_optimizer(apprentice.optimizer, dict(kernel.named_parameters()))
    sick = _ailment(incubation, look=True)
    incubation.failure = sick
    return {
        "decision": apprentice.decision.model_dump(mode="json"),
        "kernel_id": apprentice.ready.kernel_id,
        "blueprint": apprentice.ready.blueprint,
        "latency_ms": apprentice.ready.latency_ms,
        "ir": kernel.ir.canonical().decode(),
        "like": apprentice.like,
        "left": apprentice.left,
        "taken": apprentice.taken,
        "passes": incubation.passes,
        "failure": sick,
        "tensors": {name: tensor.detach().clone() for name, tensor in kernel.state_dict().items()},
        "gradients": {name: p.grad.clone() for name, p in kernel.named_parameters() if p.grad is not None},
        "groups": [{"options": group.options, "names": list(group.names)} for group in own.groups],
        "moments": own.moments,
    }
