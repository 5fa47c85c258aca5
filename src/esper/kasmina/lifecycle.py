"""The lifecycle of a seed: one table of states and edges."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from esper.errors import IllegalTransition


class SeedState(StrEnum):
    """Where a seed stands."""

    DORMANT = "dormant"
    GERMINATED = "germinated"
    LOADED = "loaded"
    TRAINING = "training"
    BLENDING = "blending"
    HOLDING = "holding"
    EVALUATING = "evaluating"
    FOSSILIZED = "fossilized"
    CULLED = "culled"
    CANCELLED = "cancelled"
    EMBARGOED = "embargoed"
    ROLLED_BACK = "rolled_back"
    LOCKED = "locked"


_S = SeedState
TRANSITIONS: dict[SeedState, frozenset[SeedState]] = {
    _S.DORMANT: frozenset({_S.GERMINATED}),
    _S.GERMINATED: frozenset({_S.LOADED, _S.CANCELLED}),
    _S.LOADED: frozenset({_S.TRAINING, _S.BLENDING, _S.CANCELLED}),
    _S.TRAINING: frozenset({_S.BLENDING, _S.CULLED, _S.CANCELLED}),
    _S.BLENDING: frozenset({_S.HOLDING, _S.CULLED, _S.ROLLED_BACK}),
    _S.HOLDING: frozenset({_S.EVALUATING, _S.CULLED, _S.ROLLED_BACK}),
    _S.EVALUATING: frozenset({_S.FOSSILIZED, _S.CULLED, _S.ROLLED_BACK}),
    _S.FOSSILIZED: frozenset({_S.EVALUATING, _S.CULLED, _S.ROLLED_BACK}),
    _S.CULLED: frozenset({_S.EMBARGOED}),
    _S.CANCELLED: frozenset({_S.EMBARGOED}),
    _S.EMBARGOED: frozenset({_S.DORMANT}),
    _S.ROLLED_BACK: frozenset({_S.LOCKED}),
    _S.LOCKED: frozenset({_S.DORMANT}),
}
"""Every legal edge; LOCKED → DORMANT is taken by hand only."""


@dataclass
class Seed:
    """What lives in a slot.

    Attributes:
        slot: Name of the slot.
        seed_idx: Index in the slot.
        state: Where it stands.
        history: Every state it entered, with the optimizer step.
    """

    slot: str
    seed_idx: int
    state: SeedState = SeedState.DORMANT
    history: list[tuple[str, int]] = field(default_factory=list)

    def move(self, to: SeedState, *, step: int) -> None:
        """Enter another state.

        Raises:
            IllegalTransition: If the lifecycle has no such edge.
        """
        if to not in TRANSITIONS[self.state]:
            legal = ", ".join(sorted(state.value for state in TRANSITIONS[self.state]))
            raise IllegalTransition(
                f"seed {self.seed_idx} of {self.slot} cannot go from {self.state} to {to}",
                why=f"from {self.state} it may go to {legal}",
            )
        self.state = to
        self.history.append((to.value, step))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "state": self.state.value, "history": [list(entry) for entry in self.history]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Seed":
        """Read what ``to_dict`` returned."""
        history = [(str(state), int(step)) for state, step in data["history"]]
        return cls(data["slot"], data["seed_idx"], SeedState(data["state"]), history)
