"""Changes to a training: a graft joins, is culled, or is rolled back, whole or not at all."""

from collections import OrderedDict
from dataclasses import dataclass

import torch

from esper.blueprints import KernelModule
from esper.errors import GraftFailed
from esper.kasmina import Newborn, detach, join, placement_of, topology
from esper.kasmina.graft import adopt
from esper.kasmina.passage import Passage
from esper.services.tolaria.distributed.partition import holder_of
from esper.services.tolaria.incubator import Apprentice
from esper.services.tolaria.newborn_rate import NewbornRate, born_at
from esper.services.tolaria.optimizer import add_newborn, give_moments, host_group_of, remove_parameters
from esper.services.tolaria.schedules import regrouped
from esper.services.tolaria.snapshot import Snapshot, Subject, capture, restore, whole, withdraw
from esper.services.tolaria.soundness import Soundness

FIRST_SHARE = 1 / 16
"""Of the tolerance, for what learned apart: what follows the slot may enlarge it (six-fold on the hosts of the zoo)."""


@dataclass(frozen=True)
class Cut:
    """Where a kernel goes: slot and seed."""

    slot: str
    seed_idx: int


class Surgeon:
    """Operates on a training, one transaction at a time.

    Args:
        subject: The training.
        snapshots_held: States before a join that are kept; the oldest goes first.
        tolerance: Largest change of the slot's output that a newborn may make.
        rate: How a newborn's learning rate differs from its host's at first; None for the host's.
    """

    def __init__(
        self, subject: Subject, *, snapshots_held: int, tolerance: float, rate: NewbornRate | None = None
    ) -> None:
        self.subject = subject
        self.held: OrderedDict[str, Snapshot] = OrderedDict()
        self.soundness = Soundness(subject)
        self._limit = snapshots_held
        self._tolerance, self._rate = tolerance, rate

    def graft(
        self,
        cut: Cut,
        data: bytes,
        *,
        kernel_id: str,
        key: str,
        seen: Passage | None,
        blueprint: str = "",
        apprentice: Apprentice | None = None,
    ) -> Newborn:
        """Join a kernel, or leave the training exactly as it was.

        Args:
            cut: Where.
            data: The kernel's bytes.
            kernel_id: Their digest, verified before anything is parsed.
            key: Under which the state before the join is held.
            seen: What passed through the slot, on which the newborn is probed; None where nothing was captured.
            blueprint: Name of the design, for people.
            apprentice: The kernel after it learned apart, which joins in place of the bytes.

        Raises:
            GraftFailed: If it cannot be joined, is not neutral or not finite on the probe; the host was restored.
        """
        before = capture(self.subject)
        alpha = 1.0 if apprentice is None else self._agreed_strength(apprentice.kernel, seen)
        try:
            with self.subject.team.together(f"grafting at {cut.slot}"):
                if (fault := self.soundness.fault()) is not None:
                    raise GraftFailed(f"{fault} is not finite", why="a state that is not sound is never held")
                if apprentice is None:
                    newborn = self._joined(cut, data, kernel_id, blueprint, seen)
                else:
                    newborn = self._adopted(cut, apprentice, blueprint, seen, alpha)
        except BaseException as error:
            withdraw(self.subject, before)
            if not isinstance(error, Exception):
                raise
            raise GraftFailed(f"grafting at {cut.slot}", why=str(error), todo="the host was restored") from error
        self._hold(key, before)
        return newborn

    def cull(self, cut: Cut, *, key: str, put_back: bool) -> bool:
        """Take a graft out.

        Args:
            cut: Which.
            key: Of the state before its join; it is held no longer after this.
            put_back: Whether to put that state back, where it is held and nothing else joined or left since.

        Returns:
            Whether the state before the join was restored.
        """
        snapshot = self.held.get(key)
        restored = put_back and snapshot is not None and self._is_alone(cut, snapshot)
        with whole(self.subject):
            if restored and snapshot is not None:
                restore(self.subject, snapshot, keep_schedule=True)
            else:
                self._take_out(cut)
        self.held.pop(key, None)
        return restored

    def roll_back(self, key: str) -> bool:
        """Put back the state before a join, to the bit; False where it is not held any more."""
        snapshot = self.held.get(key)
        if snapshot is None:
            return False
        with whole(self.subject):
            restore(self.subject, snapshot)
        later = list(self.held)[list(self.held).index(key) :]
        for name in later:
            del self.held[name]
        return True

    def _take_out(self, cut: Cut) -> None:
        """Take a graft out of the model, the optimizer, its schedule, and what is built on the model."""
        module = placement_of(self.subject.model).slots[cut.slot].module
        own = {id(p) for p in module.parameters()}
        detach(self.subject.model, cut.slot, cut.seed_idx)
        gone = own - {id(p) for p in module.parameters()}
        leaving = [p for g in self.subject.optimizer.param_groups for p in g["params"] if id(p) in gone]
        with regrouped(self.subject.schedule, self.subject.optimizer):
            remove_parameters(self.subject.optimizer, leaving)
        self.subject.follow()

    def _is_alone(self, cut: Cut, snapshot: Snapshot) -> bool:
        """Tell whether this graft is all that the model has more than it had then."""
        now = {(entry.slot, entry.seed_idx): entry.kernel_id for entry in topology(self.subject.model)}
        now.pop((cut.slot, cut.seed_idx), None)
        return now == {(entry.slot, entry.seed_idx): entry.kernel_id for entry in snapshot.entries}

    def _joined(self, cut: Cut, data: bytes, kernel_id: str, blueprint: str, seen: Passage | None) -> Newborn:
        place = placement_of(self.subject.model).slots[cut.slot]
        like = host_group_of(self.subject.optimizer, place.module.parameters())
        newborn = join(self.subject.model, cut.slot, cut.seed_idx, data, kernel_id=kernel_id, blueprint=blueprint)
        _check_birth(newborn.kernel, seen, self._tolerance)
        self._enrol(newborn, like)
        return newborn

    def _agreed_strength(self, kernel: KernelModule, seen: Passage | None) -> float:
        """Return the strength at which a kernel may join on every rank; 0 where it may not join on one of them."""
        team = self.subject.team
        team.synchronise([buffer for _, buffer in sorted(kernel.named_buffers())])
        try:
            own = first_strength(kernel, seen, self._tolerance)
        except GraftFailed:
            own = 0.0
        return min(row[0] for row in team.gather([own]))

    def _adopted(self, cut: Cut, apprentice: Apprentice, blueprint: str, seen: Passage | None, alpha: float) -> Newborn:
        """Join what learned apart, so weakly that the slot returns what it did; its moments come with it."""
        kernel = apprentice.kernel
        first_strength(kernel, seen, self._tolerance)  # says why it may not join on this rank, where it may not
        newborn = adopt(
            self.subject.model, cut.slot, cut.seed_idx, kernel,
            kernel_id=apprentice.ready.kernel_id, blueprint=blueprint, alpha=alpha,
        )  # fmt: skip
        self._enrol(newborn, apprentice.like)
        if type(apprentice.optimizer) is type(holder_of(self.subject.optimizer)):
            moments = apprentice.moments
            for name, parameter in kernel.named_parameters():
                if name in moments:
                    give_moments(self.subject.optimizer, parameter, moments[name])
        return newborn

    def _enrol(self, newborn: Newborn, like: int) -> None:
        """Let the optimizer, its schedule and what is built on the model know the newborn."""
        with regrouped(self.subject.schedule, self.subject.optimizer):
            add_newborn(self.subject.optimizer, newborn.parameters, like=like, options=born_at(self._rate))
        self.subject.follow()

    def _hold(self, key: str, snapshot: Snapshot) -> None:
        self.held[key] = snapshot
        while len(self.held) > self._limit:
            self.held.popitem(last=False)


def first_strength(kernel: KernelModule, seen: Passage | None, tolerance: float) -> float:
    """Return the largest alpha, at most 1, with which a kernel moves a probe by no more than its share of ``tolerance``.

    Raises:
        GraftFailed: If its path overflows there, or there is no probe to tell.
    """
    if seen is None:
        raise GraftFailed("there is no output of the slot to probe it on", todo="let validate run the whole model")
    largest = _largest(kernel, seen)
    smallest = torch.finfo(next(kernel.parameters(), seen.left).dtype).tiny
    return min(1.0, max(smallest, FIRST_SHARE * tolerance / largest)) if largest else 1.0


def _check_birth(kernel: KernelModule, seen: Passage | None, tolerance: float) -> None:
    """Refuse a newborn that changes what the model computes, or whose path overflows, on values really seen."""
    if seen is None:
        return
    largest = _largest(kernel, seen)
    if largest > tolerance:
        raise GraftFailed("the newborn is not neutral", why=f"it changes the output by {largest:.3g}")


@torch.no_grad()
def _largest(kernel: KernelModule, seen: Passage) -> float:
    """Return the largest value that a kernel adds on values really seen."""
    training, x = kernel.training, seen.given(kernel.ir.reads)
    weight = next(kernel.parameters(), x)
    added = kernel.eval()(x.to(weight.dtype))  # under autocast a slot returns a narrower type than its weights have
    kernel.train(training)
    if not bool(torch.isfinite(added).all()):
        raise GraftFailed("the newborn's path is not finite on the probe", todo="normalise before the slot")
    return float(added.abs().max())
