"""The seeds of a model: their states, and until when the slots of those that failed rest."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from esper.kasmina import Placement, Seed, SeedState
from esper.services.tolaria.record import Position

RESTING = (SeedState.LOCKED, SeedState.EMBARGOED)
_WAY_IN = (SeedState.BLENDING, SeedState.HOLDING, SeedState.EVALUATING, SeedState.FOSSILIZED)
_WAY_OUT = (SeedState.CANCELLED, SeedState.EMBARGOED, SeedState.DORMANT)
_BEFORE_THE_JOIN = (SeedState.GERMINATED, SeedState.LOADED, SeedState.TRAINING)


class SeedBook:
    """Keeps the seeds of one model.

    Args:
        placement: Of the model; what an earlier run left in it unfinished is settled at once.
        embargo_boundaries: How long a slot rests after a cull.
    """

    def __init__(self, placement: Placement, *, embargo_boundaries: int) -> None:
        self._placement, self._embargo = placement, embargo_boundaries
        self._until: dict[tuple[str, int], int] = {}
        self._settle_inherited()

    def of(self, slot: str, seed_idx: int) -> Seed:
        """Return a seed, dormant where it is new."""
        return self._placement.seeds.setdefault((slot, seed_idx), Seed(slot=slot, seed_idx=seed_idx))

    def rest(self, seed: Seed, at: Position) -> None:
        """Let the slot of a seed that was culled or cancelled rest."""
        seed.move(SeedState.EMBARGOED, step=at.step)
        self._until[seed.slot, seed.seed_idx] = at.boundary + self._embargo

    def wake(self, at: Position) -> None:
        """Let those grow again that have rested for long enough."""
        for place in [place for place, until in self._until.items() if at.boundary >= until]:
            del self._until[place]
            seed = self.of(*place)
            if seed.state is SeedState.EMBARGOED:
                seed.move(SeedState.DORMANT, step=at.step)

    def dismiss(self, slot: str, seed_idx: int, at: Position) -> None:
        """Let a seed that is cancelled be free at once, as nothing is left of its run."""
        for following in _WAY_OUT:
            self.of(slot, seed_idx).move(following, step=at.step)

    def unlock(self, slot: str, seed_idx: int, at: Position) -> None:
        """Let a seed that a rollback locked be grown again.

        Raises:
            NotFound: If there is no such slot.
            IllegalTransition: If it is not locked.
        """
        self._placement.place(slot)
        self.of(slot, seed_idx).move(SeedState.DORMANT, step=at.step)

    def copies(self) -> tuple[Seed, ...]:
        """Return every seed as it is now."""
        return tuple(copy.deepcopy(list(self._placement.seeds.values())))

    def reopen(
        self, seeds: Sequence[Seed], *, rewound: int, joined: set[tuple[str, int]], keep: Seed | None = None
    ) -> None:
        """Put seeds back; locks and embargoes that came since stay, but where a graft is back.

        Args:
            seeds: As ``copies`` returned them.
            rewound: Boundaries by which the run went back.
            joined: Where the model has a graft now.
            keep: A seed that stays as it is.
        """
        resting = [s for place, s in self._placement.seeds.items() if s.state in RESTING and place not in joined]
        self._until = {place: until - rewound for place, until in self._until.items() if place not in joined}
        self._replace([*copy.deepcopy(list(seeds)), *resting, *([] if keep is None else [keep])])

    def state_dict(self) -> dict[str, Any]:
        """Return every seed, and who rests until which boundary."""
        return {
            "seeds": [seed.to_dict() for seed in self._placement.seeds.values()],
            "embargoes": [[slot, index, until] for (slot, index), until in self._until.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._replace(Seed.from_dict(seed) for seed in state["seeds"])
        self._until = {(slot, index): until for slot, index, until in state["embargoes"]}

    def _replace(self, seeds: Iterable[Seed]) -> None:
        self._placement.seeds.clear()
        self._placement.seeds.update({(seed.slot, seed.seed_idx): seed for seed in seeds})

    def _settle_inherited(self) -> None:
        """Take what an earlier run left on trial as part of the model, whose losses are not known here; free other slots."""
        for seed in self._placement.seeds.values():
            following: tuple[SeedState, ...] = ()
            if seed.state in _WAY_IN:
                following = _WAY_IN[_WAY_IN.index(seed.state) + 1 :]
            elif seed.state in _BEFORE_THE_JOIN:  # in a copy of a model that grew
                following = _WAY_OUT
            elif seed.state is SeedState.EMBARGOED:
                following = _WAY_OUT[-1:]
            for state in following:
                seed.move(state, step=0)
