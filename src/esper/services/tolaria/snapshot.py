"""A whole training state, taken and put back to the bit (law 4)."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.kasmina import GraftEntry, restore_topology, topology
from esper.kasmina.quiet import RandomState, capture_rng, restore_rng
from esper.kasmina.shares import local
from esper.services.tolaria.copies import borrowed, copied
from esper.services.tolaria.distributed.sharding import reshard, shares_like
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.optimizer import name_parameters
from esper.services.tolaria.optimizer_state import GroupState, OptimizerState, capture_optimizer, restore_optimizer
from esper.services.tolaria.schedules import Schedule, capture_schedule, regrouped, restore_schedule


class Stateful(Protocol):
    """Anything with a state to take and put back: a GradScaler, an EMA, a stateful loader."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take a state back."""
        ...


class Follower(Protocol):
    """Something built on the model that must fit its topology: an average of its weights, a reducer of its gradients."""

    def follow(self) -> None:
        """Fit the model as it is now; called after every change of its topology, also where that left it the same.

        Parameters that are new have the values of their birth; a restore loads others afterwards.
        """
        ...


@dataclass(frozen=True)
class Subject:
    """The training that is captured: its model and all that moves with it.

    Attributes:
        model: Wrapped.
        optimizer: Trains it.
        schedule: Steers the optimizer, or None.
        others: What the user put into ``state=``.
        followers: What is built on the model's topology.
        team: The processes that train it; this one alone by default.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule | None = None
    others: Sequence[Stateful] = ()
    followers: Sequence[Follower] = ()
    team: Team = field(default_factory=Team)

    def follow(self) -> None:
        """Let everything that is built on the model fit its present topology."""
        for follower in self.followers:
            follower.follow()


@dataclass(frozen=True)
class Snapshot:
    """A training state as of one boundary.

    Attributes:
        entries: The grafts.
        tensors: Parameters and buffers by name.
        optimizer: Groups and moments by name.
        schedule: State of the schedule, or None.
        others: States of what the user put into ``state=``.
        rng: The global generators.
    """

    entries: tuple[GraftEntry, ...]
    tensors: dict[str, Tensor]
    optimizer: OptimizerState
    schedule: dict[str, Any] | None
    others: tuple[dict[str, Any], ...]
    rng: RandomState

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, numbers, strings and tensors only, so that nothing needs unpickling."""
        return {
            "entries": [asdict(entry) for entry in self.entries],
            "tensors": {name: local(tensor) for name, tensor in self.tensors.items()},
            "groups": [{"options": group.options, "names": list(group.names)} for group in self.optimizer.groups],
            "moments": {name: _plain(moments) for name, moments in self.optimizer.moments.items()},
            "extras": self.optimizer.extras,
            "schedule": self.schedule,
            "others": list(self.others),
            "rng": self.rng.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Snapshot":
        """Read what ``to_dict`` returned."""
        groups = tuple(GroupState(group["options"], tuple(group["names"])) for group in data["groups"])
        return cls(
            entries=tuple(GraftEntry(**entry) for entry in data["entries"]),
            tensors=data["tensors"],
            optimizer=OptimizerState(groups, data["moments"], data["extras"]),
            schedule=data["schedule"],
            others=tuple(data["others"]),
            rng=RandomState.from_dict(data["rng"]),
        )


def capture(subject: Subject, *, copy: bool = True) -> Snapshot:
    """Return the whole training state; the training is left as it was.

    Args:
        subject: The training.
        copy: Whether tensors are copied, rather than the very ones that the next step changes.
    """
    _settle(subject)
    take = copied if copy else borrowed
    named = name_parameters(subject.model, subject.optimizer)
    return Snapshot(
        entries=topology(subject.model),
        tensors={name: take(tensor) for name, tensor in _tensors(subject).items()},
        optimizer=capture_optimizer(subject.optimizer, named, copy=copy),
        schedule=capture_schedule(subject.schedule),
        others=tuple(deepcopy(other.state_dict()) if copy else other.state_dict() for other in subject.others),
        rng=capture_rng(),
    )


def restore(subject: Subject, snapshot: Snapshot, *, keep_schedule: bool = False) -> None:
    """Put the whole training state back.

    Args:
        subject: The training; its surviving parameters stay the same objects.
        snapshot: What ``capture`` returned, here or in another process.
        keep_schedule: Whether the schedule's position and the learning rates that it set stay as they are now, as after
            a cull, whose steps count as spent.
    """
    for act in _steps(subject, snapshot, keep_schedule=keep_schedule):
        act()
    subject.optimizer.zero_grad(set_to_none=True)


@contextmanager
def whole(subject: Subject) -> Iterator[None]:
    """Change a training inside the block whole or not at all: where it raises, the state before it is put back."""
    before = capture(subject)
    try:
        yield
    except BaseException:
        put_back(subject, before)
        raise


def put_back(subject: Subject, before: Snapshot) -> None:
    """Put a state back after a change that raised; gradients are left alone, and what raises again stays as it is.

    Raises:
        BaseException: What interrupted it, such as a ``KeyboardInterrupt``, once everything else is back.
    """
    _each(_steps(subject, before))


def withdraw(subject: Subject, before: Snapshot) -> None:
    """Take back a join that failed: topology, optimizer and schedule; nothing else has changed yet.

    Args:
        subject: The training; gradients and what is in ``state=`` are left alone.
        before: What ``capture`` returned before the join.
    """
    _each(
        [
            lambda: restore_topology(subject.model, before.entries),
            *(follower.follow for follower in subject.followers),
            lambda: _restore_optimizer(subject, before),
            lambda: restore_schedule(subject.schedule, before.schedule),
        ]
    )


def _steps(subject: Subject, snapshot: Snapshot, *, keep_schedule: bool = False) -> list[Callable[[], object]]:
    """Return what puts a state back, in order."""

    def loading(other: Stateful, state: dict[str, Any]) -> Callable[[], object]:
        return lambda: other.load_state_dict(deepcopy(state))

    return [
        lambda: restore_topology(subject.model, snapshot.entries),
        *(follower.follow for follower in subject.followers),
        lambda: _load(subject, snapshot.tensors),
        lambda: _restore_optimizer(subject, snapshot, keep_options=keep_schedule),
        *([] if keep_schedule else [lambda: restore_schedule(subject.schedule, snapshot.schedule)]),
        *(loading(other, state) for other, state in zip(subject.others, snapshot.others, strict=True)),
        lambda: restore_rng(snapshot.rng),
    ]


def _restore_optimizer(subject: Subject, snapshot: Snapshot, *, keep_options: bool = False) -> None:
    named = name_parameters(subject.model, subject.optimizer)
    moments = {name: shares_like(named[name], state) for name, state in snapshot.optimizer.moments.items()}
    saved = replace(snapshot.optimizer, moments=moments)
    with regrouped(subject.schedule, subject.optimizer):
        restore_optimizer(subject.optimizer, saved, named, keep_options=keep_options)


def _each(acts: Sequence[Callable[[], object]]) -> None:
    """Do everything, whatever raises on the way; an interrupt is passed on at the end."""
    interrupt: BaseException | None = None
    for act in acts:
        try:
            act()
        except Exception:  # the caller has an error to raise already
            continue
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def digest(subject: Subject) -> str:
    """Return one SHA-256 over every parameter, buffer and optimizer moment, by name: equal states, equal digests."""
    _settle(subject)
    named = name_parameters(subject.model, subject.optimizer)
    moments = capture_optimizer(subject.optimizer, named, copy=False).moments
    tensors = {f"model.{name}": tensor for name, tensor in _tensors(subject).items()}
    for name, state in moments.items():
        tensors.update({f"moment.{name}.{key}": v for key, v in state.items() if isinstance(v, Tensor)})
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(local(tensors[name].detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def _tensors(subject: Subject) -> dict[str, Tensor]:
    """Return every parameter, those that only the optimizer knows included, and every buffer."""
    return {**name_parameters(subject.model, subject.optimizer), **dict(subject.model.named_buffers())}


def _settle(subject: Subject) -> None:
    """Let a sharded model have its shares, whatever ran last."""
    if subject.team.sharded:
        reshard(subject.model)


def _plain(moments: dict[str, Any]) -> dict[str, Any]:
    return {key: local(value) if isinstance(value, Tensor) else value for key, value in moments.items()}


@torch.no_grad()
def _load(subject: Subject, tensors: dict[str, Tensor]) -> None:
    present = _tensors(subject)
    for name, saved in tensors.items():
        now = present.get(name)
        if now is not None and local(now).shape == local(saved).shape:
            local(now).copy_(local(saved))
        else:  # a buffer that the forward pass replaced by one of another shape, such as a cache
            owner, _, leaf = name.rpartition(".")
            subject.model.get_submodule(owner)._buffers[leaf] = copied(saved)
    torch.clear_autocast_cache()  # a caller within autocast would go on with casts of what was there before
