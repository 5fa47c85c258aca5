"""The book of a growing run: where it stands, which grafts are on trial, what was learned."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from esper.contracts.adaptation import LossPoint
from esper.contracts.ids import new_id
from esper.ir import Cost
from esper.kasmina import GraftEntry
from esper.services.tolaria.events import EventKind, GrowthEvent


@dataclass(frozen=True)
class Rise:
    """The strength of a graft on its way to 1.

    Attributes:
        slot: Name of the slot.
        seed_idx: Index of the seed.
        since: Step from which on it rises.
        first: Strength there.
        steps: Over which it rises from there to 1, evenly.
    """

    slot: str
    seed_idx: int
    since: int
    first: float
    steps: int

    def alpha(self, step: int) -> float | None:
        """Return the strength after an optimizer step, or None once it stays as it is."""
        passed = step - self.since
        return self.first + (1.0 - self.first) * passed / self.steps if 0 < passed <= self.steps else None


@dataclass
class Trial:
    """A graft, from its joining on.

    Attributes:
        event: The event of its joining.
        params: Parameters that it added.
        flops: Forward FLOPs per example that it added.
        latency_ms: Forward time that the forge measured.
        boundary: At which it joined.
        due: Boundary of its verdict.
        before: Mean held-out loss of the averaged weights before it joined.
        judged: Whether its verdict has been given.
        first_alpha: Strength with which it joined.
        blend_steps: Steps over which its strength rises from there to 1.
    """

    event: GrowthEvent
    params: int
    flops: int
    latency_ms: float
    boundary: int
    due: int
    before: float
    judged: bool = False
    first_alpha: float = 1.0
    blend_steps: int = 0

    @classmethod
    def of_earlier(cls, graft: GraftEntry, price: Cost, *, host_params: int) -> Self:
        """Return the trial of a graft that was there before the run, as if it had been kept at its beginning."""
        event = GrowthEvent(
            step=0, kind=EventKind.GRAFTED, why="it was there before this run", slot=graft.slot, seed_idx=graft.seed_idx,
            blueprint=graft.blueprint, kernel_id=graft.kernel_id, decision_id=new_id("decision"), added_params=price.params,
            added_ratio=price.params / host_params,
        )  # fmt: skip
        return cls(event, price.params, price.flops, 0.0, 0, 0, math.nan, judged=True)

    @property
    def rise(self) -> Rise:
        """How its strength rises."""
        return Rise(*self.place, self.event.step, self.first_alpha, self.blend_steps)

    @property
    def key(self) -> str:
        """Names the trial: the id of the decision behind it."""
        return self.event.decision_id

    @property
    def place(self) -> tuple[str, int]:
        """Slot and seed."""
        return self.event.slot, self.event.seed_idx


@dataclass
class Position:
    """Where a run stands; a rollback restores it.

    Attributes:
        step: Optimizer steps on the way to the planned length.
        boundary: Boundaries passed.
        history: Losses at each boundary; the first boundary is at index 0.
        changes: Indices into ``history`` after which the loss is not that of a graft-free training: a graft joined or left
            there, or was on trial until the next one.
        grafts: Steps at which grafts joined.
        trials: Grafts that are part of the model, by key.
        inherited: Strengths that an earlier run left on their way.
    """

    step: int = 0
    boundary: int = 0
    history: list[LossPoint] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    grafts: list[int] = field(default_factory=list)
    trials: dict[str, Trial] = field(default_factory=dict)
    inherited: tuple[Rise, ...] = ()

    @property
    def losses(self) -> list[float]:
        """Held-out losses at each boundary."""
        return [point.validation for point in self.history]

    @property
    def open_trials(self) -> list[Trial]:
        """Grafts without a verdict, oldest first."""
        return [trial for trial in self.trials.values() if not trial.judged]

    @property
    def rises(self) -> list[Rise]:
        """Strengths that rise or rose."""
        return [*self.inherited, *(trial.rise for trial in self.open_trials)]

    def changed(self) -> None:
        """Note that the model changed at this boundary."""
        self.changes.append(len(self.history) - 1)

    def tried(self) -> None:
        """Note that a graft was on trial since the boundary before this one."""
        self.changes.append(len(self.history) - 2)

    def copy(self) -> "Position":
        """Return an independent copy."""
        return Position.from_dict(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "step": self.step,
            "boundary": self.boundary,
            "history": [point.model_dump() for point in self.history],
            "changes": list(self.changes),
            "grafts": list(self.grafts),
            "trials": [{**asdict(trial), "event": trial.event.to_json()} for trial in self.trials.values()],
            "inherited": [asdict(rise) for rise in self.inherited],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Position":
        """Read what ``to_dict`` returned."""
        trials = [Trial(**{**trial, "event": GrowthEvent.from_json(trial["event"])}) for trial in data["trials"]]
        return cls(
            step=data["step"],
            boundary=data["boundary"],
            history=[LossPoint(**point) for point in data["history"]],
            changes=list(data["changes"]),
            grafts=list(data["grafts"]),
            trials={trial.key: trial for trial in trials},
            inherited=tuple(Rise(**rise) for rise in data.get("inherited", ())),
        )
