"""The book of a growing run: where it stands, which grafts are on trial, what was learned."""

from dataclasses import asdict, dataclass, field
from typing import Any

from esper.contracts.adaptation import LossPoint
from esper.services.tolaria.events import GrowthEvent


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

    def alpha(self, step: int) -> float | None:
        """Return its strength after an optimizer step, or None once that stays as it is."""
        passed = step - self.event.step
        if not 0 < passed <= self.blend_steps:
            return None
        return self.first_alpha + (1.0 - self.first_alpha) * passed / self.blend_steps

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
    """

    step: int = 0
    boundary: int = 0
    history: list[LossPoint] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    grafts: list[int] = field(default_factory=list)
    trials: dict[str, Trial] = field(default_factory=dict)

    @property
    def losses(self) -> list[float]:
        """Held-out losses at each boundary."""
        return [point.validation for point in self.history]

    @property
    def open_trials(self) -> list[Trial]:
        """Grafts without a verdict, oldest first."""
        return [trial for trial in self.trials.values() if not trial.judged]

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
        )
