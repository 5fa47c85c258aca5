"""A twin: the training as it would go on without the newest graft, on the same batches, beside the run."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina import restore_topology, topology
from esper.kasmina.flop_counter import FlopCounter
from esper.kasmina.graft import set_strength
from esper.kasmina.mirroring import mirror_grafts
from esper.kasmina.quiet import RandomState, capture_rng, preserved_rng, quiet, restore_rng
from esper.services.tolaria.acceptance import Judgement
from esper.services.tolaria.averaging import AveragedWeights
from esper.services.tolaria.held_out import HeldOut, Validate
from esper.services.tolaria.newborn_rate import NewbornRates
from esper.services.tolaria.paired import Difference, judge_pair
from esper.services.tolaria.snapshot import Snapshot, Subject, capture, restore
from esper.services.tolaria.trainer.stepping import Stepper


@dataclass
class Arm:
    """A twin at work.

    Attributes:
        key: Of the graft that it lacks.
        stepper: Trains it.
        subject: The same as what is captured.
        rng: The generators that it draws from, its own.
        average: Of its weights since the last boundary.
        held_out: Measures it.
        rates: Learning rates of the newborns that it has.
        counted: Operations of a step, by the shapes of its batches.
        found: The difference at each boundary.
    """

    key: str
    stepper: Stepper
    subject: Subject
    rng: RandomState
    average: AveragedWeights
    held_out: HeldOut
    rates: NewbornRates
    counted: dict[str, int] = field(default_factory=dict)
    found: list[Difference] = field(default_factory=list)


class Twin:
    """Trains a model as it was before the newest graft on the batches that the run trains on, and compares the two.

    There is one at a time: where another graft joins or leaves, the one at work is given up.

    Args:
        model: The run's, wrapped and not yet attached.
        make: Returns what trains a copy of it, as the run's was made.
        validate: Returns held-out losses.
        stride: Optimizer steps between two that are taken into the mean of the weights, as in the run.
        scaler_at: Place of the gradient scaler in the run's ``state=``, where there is one.

    Raises:
        ConfigError: If the model cannot be copied.
    """

    def __init__(
        self, model: nn.Module, make: Callable[[nn.Module], Stepper], validate: Validate, *, stride: int, scaler_at: int
    ) -> None:
        self._model, self._make, self._validate = model, make, validate
        self._stride, self._scaler_at = stride, scaler_at
        self._copy, self._first = _copy_of(model), topology(model)
        self._arm: Arm | None = None
        self._spent = 0

    @property
    def flops(self) -> dict[str, int]:
        """What training and measuring twins took so far."""
        return {"twin": self._spent}

    # -- beside each step --------------------------------------------------------------------------------------------

    def shown(self, batches: Sequence[Any]) -> Sequence[Any]:
        """Return the batches as they are before the run trains on them, which may change them; none where no twin trains."""
        return () if self._arm is None else copy.deepcopy(batches)

    def step(self, batches: Sequence[Any], number: int) -> None:
        """Take the optimizer step that the run has just taken.

        Args:
            batches: What ``shown`` returned.
            number: Of the step in the run.
        """
        arm = self._arm
        if arm is None:
            return
        with preserved_rng():
            restore_rng(arm.rng)
            self._spent += _trained(arm, batches)
            arm.rng = capture_rng()
        if number % self._stride == 0:
            arm.average.update()

    def follow_metric(self, value: float) -> None:
        """Let a schedule that waits for a plateau go on by the run's own metric, so that both arms learn at one rate."""
        if self._arm is not None and self._arm.stepper.schedule is not None:
            self._arm.stepper.schedule.step(value)  # type: ignore[arg-type]

    # -- at boundaries -----------------------------------------------------------------------------------------------

    def joined(self, key: str, before: Snapshot) -> None:
        """Begin from the state before a join, in place of any other."""
        self._begin(key, before, before.others[self._scaler_at :])

    def rise(self, slot: str, seed_idx: int, alpha: float) -> None:
        """Let a graft that it has too have its strength of now."""
        if self._arm is not None and any((e.slot, e.seed_idx) == (slot, seed_idx) for e in topology(self._copy)):
            set_strength(self._copy, slot, seed_idx, alpha)

    def compare(self, losses: Tensor) -> None:
        """Measure the mean of its weights on the same examples; one whose losses are not finite is given up."""
        arm = self._arm
        if arm is None:
            return
        before = arm.held_out.spent_flops
        with arm.average.applied():
            own = arm.held_out.measure(topology_version=0).losses
        self._spent += arm.held_out.spent_flops - before
        arm.average.reset()
        if own.shape != losses.shape or not bool(torch.isfinite(own).all()):
            self.void()
            return
        difference = own - losses
        error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
        arm.found.append(Difference(float(difference.mean()), error))

    def found(self, key: str) -> Judgement | None:
        """Return what it says of a graft; None where it was begun for another, or too late."""
        return judge_pair(self._arm.found) if self._arm is not None and self._arm.key == key else None

    def left(self, key: str) -> None:
        """End where the trial of that graft is over."""
        if self._arm is not None and self._arm.key == key:
            self.void()

    def void(self) -> None:
        """End."""
        if self._arm is not None:
            self._arm.rates.close()
            self._arm.stepper.optimizer.zero_grad(set_to_none=True)
        self._arm = None

    # -- where a run goes on -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        arm = self._arm
        if arm is None:
            return {"spent": self._spent, "arm": None}
        held = {
            "key": arm.key,
            "training": replace(capture(arm.subject), rng=arm.rng).to_dict(),
            "average": arm.average.state_dict(),
            "held_out": arm.held_out.counted(),
            "counted": [list(item) for item in arm.counted.items()],
            "found": [[difference.mean, difference.error] for difference in arm.found],
        }
        return {"spent": self._spent, "arm": held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``; the run's model has been restored."""
        self.void()
        self._spent, held = state.get("spent", 0), state.get("arm")
        if held is None:
            return
        snapshot = Snapshot.from_dict(held["training"])
        arm = self._begin(held["key"], snapshot, snapshot.others)
        arm.average.load_state_dict(held["average"])
        arm.held_out.take_counted(held["held_out"])
        arm.counted = dict(held["counted"])
        arm.found = [Difference(mean, error) for mean, error in held["found"]]

    def _begin(self, key: str, state: Snapshot, others: Sequence[dict[str, Any]]) -> Arm:
        self.void()
        with preserved_rng():
            mirror_grafts(self._model, self._copy)
            restore_topology(self._copy, self._first)
            self._copy.train()
            stepper = self._make(self._copy)
            scaler = stepper.precision.scaler
            own = () if scaler is None else (scaler,)
            subject = Subject(self._copy, stepper.optimizer, stepper.schedule, own)
            restore(subject, replace(state, others=tuple(others[: len(own)])))
            self._arm = Arm(
                key, stepper, subject, capture_rng(), AveragedWeights(self._copy),
                HeldOut(self._validate, self._copy), NewbornRates(stepper.optimizer),
            )  # fmt: skip
        return self._arm


def _trained(arm: Arm, batches: Sequence[Any]) -> int:
    """Take one step and return what it took; the first of each shape of the batches is run once more, to count it."""
    shapes = _shapes(batches)
    passes = 1 if shapes in arm.counted else 2
    if passes == 2:
        arm.counted[shapes] = _counted(arm, copy.deepcopy(batches))
    arm.stepper.step(batches)
    return passes * arm.counted[shapes]


def _counted(arm: Arm, batches: Sequence[Any]) -> int:
    """Return the operations of a step, not taken here: under a counter it would round otherwise than the run's."""
    stepper = arm.stepper
    with quiet(stepper.model), FlopCounter() as counter:
        for batch in batches:
            with stepper.precision.autocast():
                loss = stepper.objective.training(stepper.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
    stepper.optimizer.zero_grad()
    return int(counter.total)


def _shapes(value: object) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, Mapping):
        return _shapes(list(value.values()))
    return f"[{', '.join(map(_shapes, value))}]" if isinstance(value, (list, tuple)) else "-"


def _copy_of(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ConfigError(
            f"a {type(model).__name__} cannot be copied for a twin",
            why=f"{type(error).__name__}: {error}",
            todo='leave control="twin" out, or let copy.deepcopy(model) work',
            code="ESP-2713",
        ) from error
