"""What could be grafted now, and why something may not be."""

from collections.abc import Iterable, Mapping

from esper.contracts.adaptation import KERNEL_NOT_READY, OVER_BUDGET, Candidate, SlotState
from esper.contracts.health import HealthSignal
from esper.ir import Cost
from esper.kasmina import Placement, Seed, SeedState
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.kernels import KernelShelf, Offer
from esper.services.tolaria.record import Trial


class Candidates:
    """Lists candidates with their masks.

    Args:
        placement: Slots and seeds of the model.
        shelf: Offers and kernels.
        budget: Limits on what may be added.
        seeds_per_slot: Grafts that one slot may hold.
        inherited_params: Parameters of grafts that were there before the run.
    """

    def __init__(
        self,
        placement: Placement,
        shelf: KernelShelf,
        budget: Budget,
        *,
        seeds_per_slot: int,
        inherited_params: int = 0,
    ) -> None:
        self._placement, self._shelf, self.budget = placement, shelf, budget
        self._seeds_per_slot, self.inherited_params = seeds_per_slot, inherited_params

    def current(self, trials: Iterable[Trial], scores: Mapping[str, float]) -> tuple[Candidate, ...]:
        """Return every offer with the reasons for which it may not be chosen now."""
        present = tuple(trials)
        return tuple(self._candidate(offer, present, scores) for offer in self._shelf.offers)

    def slots(self, health: Iterable[HealthSignal]) -> tuple[SlotState, ...]:
        """Return every slot with the states of its seeds and its latest metrics."""
        metrics = {signal.layer_id: signal.metrics for signal in health}
        return tuple(
            SlotState(
                slot=place.name,
                stage=place.stage,
                order=place.order,
                seeds=tuple(seed.state.value for seed in self._seeds_of(place.name)),
                metrics=metrics.get(place.name, {}),
            )
            for place in self._placement.slots.values()
        )

    def free_seed(self, slot: str) -> int | None:
        """Return the index of the first dormant seed of a slot, or None where all are taken or rest."""
        for index in range(self._seeds_per_slot):
            seed = self._placement.seeds.get((slot, index))
            if seed is None or seed.state is SeedState.DORMANT:
                return index
        return None

    def _candidate(self, offer: Offer, trials: tuple[Trial, ...], scores: Mapping[str, float]) -> Candidate:
        ready = self._shelf.ready(offer)
        return Candidate(
            slot=offer.place.name,
            seed_idx=self.free_seed(offer.place.name) or 0,
            blueprint=offer.ir.name,
            blueprint_id=offer.ir.digest,
            kernel_id=None if ready is None else ready.kernel_id,
            kind=offer.kind,
            stage=offer.place.stage,
            order=offer.place.order,
            params=offer.params,
            flops=offer.flops,
            score=scores.get(offer.place.name),
            masked=tuple(self._masks(offer, trials)),
        )

    def _masks(self, offer: Offer, trials: tuple[Trial, ...]) -> Iterable[str]:
        refusal = self._shelf.refusal(offer)
        ready = self._shelf.ready(offer)
        if refusal is not None:
            yield f"refused by the forge: {refusal}"
        elif ready is None:
            yield KERNEL_NOT_READY
        if self.free_seed(offer.place.name) is None:
            states = ", ".join(seed.state.value for seed in self._seeds_of(offer.place.name))
            yield f"no free seed: {states}"
        latency_ms = 0.0 if ready is None else ready.latency_ms
        yield from self.over_budget(trials, Cost(offer.params, offer.flops), latency_ms)

    def over_budget(self, trials: Iterable[Trial], price: Cost, latency_ms: float) -> Iterable[str]:
        """Say which limits one more graft of a price would pass."""
        trials = tuple(trials)
        sums = (
            ("parameters", self.inherited_params + sum(t.params for t in trials) + price.params, self.budget.params),
            ("FLOPs", sum(t.flops for t in trials) + price.flops, self.budget.flops),
            ("ms", sum(t.latency_ms for t in trials) + latency_ms, self.budget.latency),
        )
        for unit, total, limit in sums:
            if limit is not None and total > limit:
                yield f"{OVER_BUDGET}: {total:g} of {limit:g} {unit}"

    def _seeds_of(self, slot: str) -> list[Seed]:
        return [seed for (name, _), seed in sorted(self._placement.seeds.items()) if name == slot]
