"""Kernels on their way into the model: by a decision whose boundary has come, after learning apart, or by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from esper.blueprints import unpack_kernel
from esper.contracts.adaptation import Action, AdaptationDecision
from esper.contracts.ids import new_id
from esper.errors import ConfigError, Conflict, EsperError, GraftFailed, UnsafeAdaptation
from esper.kasmina import SeedState
from esper.services.tolaria.candidates import Candidates
from esper.services.tolaria.config import GrowthConfig, Late
from esper.services.tolaria.consultation import Consultation
from esper.services.tolaria.distributed.team import told_text
from esper.services.tolaria.distributed.words import told_kernel
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.held_out import Measurement
from esper.services.tolaria.incubations import Incubations
from esper.services.tolaria.incubator import Apprentice
from esper.services.tolaria.kernels import KernelShelf, ReadyKernel
from esper.services.tolaria.observation import Observation, Observer
from esper.services.tolaria.trials import Trials

BY_HAND = "manual"
"""Strategy of a decision that the user took."""


class Grafting:
    """Brings kernels into the model.

    Args:
        shelf: Kernels that were asked for.
        config: Settings of the run.
        trials: The book of the run.
        candidates: What could be grafted, and what speaks against it.
        consultation: Has the decision that is carried out.
        observer: Measures the training before a join.
        changed: Called after the model may have become another.

    Attributes:
        incubations: What learns apart.
        before_join: Called right before a graft joins.
    """

    def __init__(
        self,
        shelf: KernelShelf,
        config: GrowthConfig,
        trials: Trials,
        candidates: Candidates,
        consultation: Consultation,
        observer: Observer,
        changed: Callable[[], None],
    ) -> None:
        self.incubations = Incubations(trials)
        self.before_join: Callable[[], None] = _nothing
        self._shelf, self._config, self._trials = shelf, config, trials
        self._candidates, self._consultation, self._observer = candidates, consultation, observer
        self._changed = changed
        self._requested = False
        self._prepared = ""

    def request_kernels(self, *, demanded: bool = False) -> None:
        """Ask the forge for every eligible kernel, once, as soon as the shapes of the slots are known.

        Raises:
            ConfigError: If they are demanded now and the shapes are not known.
        """
        if not self._requested and self._trials.placement.ready:
            self._shelf.request(self._trials.placement.slots.values())
            self._requested = True
        elif demanded and not self._requested:
            raise ConfigError(
                "the shapes of the slots are not known yet",
                todo="give esper.wrap an example= input, or run the model once",
                code="ESP-2150",
            )

    async def kernel_for(self, slot: str, kernel_id: str) -> ReadyKernel:
        """Fetch any validated kernel of the library for a slot."""
        self._trials.placement.place(slot)
        return await self._shelf.fetch(kernel_id)

    def fetch(self, decision: AdaptationDecision) -> None:
        """Wait for the kernel of a decision; where it cannot be had, the boundary of its joining says so."""
        if not self._trials.team.leads:
            return
        shelf, limit_s = self._shelf, self._config.wait_limit_s
        self.request_kernels()
        with suppress(EsperError):  # what is not among the offers is asked for by its address alone
            shelf.wait_for(shelf.find(str(decision.target_layer), str(decision.blueprint)), limit_s=limit_s)
        with suppress(EsperError):
            shelf.wait_for_id(str(decision.kernel_id), limit_s=limit_s)

    def carry_out(self, decision: AdaptationDecision, observation: Observation) -> list[GrowthEvent]:
        """Graft what was decided, where its kernel is here; at a later boundary otherwise, and the log says so."""
        late = self._consultation.lateness(self._trials.position.boundary)
        if self._trials.ended:
            self._consultation.done()
            return [self._trials.note(EventKind.CANCELLED, decision, why="the run ends at this boundary", kept=False)]
        try:
            self._check_allowed(decision)
            ready = told_kernel(self._trials.team, lambda: self._kernel_of(decision))
            self._check_price(str(decision.target_layer), ready)
        except EsperError as error:
            self._consultation.done()
            return [self._trials.note(EventKind.CANCELLED, decision, why=str(error), kept=False)]
        if ready is None:
            why = "its kernel is not here; it joins when it comes"
            return [] if late else [self._trials.note(EventKind.LATE, decision, why=why)]
        events = [self._trials.note(EventKind.LATE, decision, why=f"joins {late} boundaries late")] if late else []
        if not self._config.incubate:
            self.before_join()
        seed = self._trials.seeds.of(str(decision.target_layer), decision.seed_idx)
        seed.move(SeedState.GERMINATED, step=self._trials.position.step)
        if self._config.incubate:
            self._consultation.done()
            self._prepare(decision, ready)
            return [*events, self.incubations.begin(decision, ready, steps=self._config.incubate)]
        self._consultation.done()
        seen = observation.held_out.seen
        with self._changing():
            events.append(self._trials.join(decision, ready, before=observation.point.validation, seen=seen))
        return events

    def graduations(self) -> list[GrowthEvent]:
        """Let what has learned apart for long enough join; at the end of the run nothing joins any more."""
        events = []
        for apprentice in list(self._trials.incubator.apprentices.values()):
            if self._trials.ended:
                events.append(self.incubations.withdraw(apprentice, why="the run ends while it learns apart"))
            elif apprentice.left <= 0:
                events.append(self._graduate(apprentice))
        return events

    def prepare_known(self) -> None:
        """Let what a decision will change be compiled as soon as decision and kernel are here, ahead of its boundary.

        Of several processes only the one that leads knows of it so early; they compile at the join.
        """
        known = None if self._observer.regions.are_watched else self._consultation.known
        if known is None or known.decision.decision_id == self._prepared:
            return
        if (ready := self._shelf.held(str(known.decision.kernel_id))) is not None:
            self._prepared = known.decision.decision_id
            self._prepare(known.decision, ready)

    def by_hand(self, slot: str, blueprint: str, *, incubate: int = 0) -> GrowthEvent:
        """Graft a blueprint now, waiting for its kernel; see ``Growth.graft``."""
        self.request_kernels(demanded=True)
        self._trials.team.agree("growth.graft", self._trials.position.step, slot, blueprint)
        shelf, limit_s = self._shelf, self._config.wait_limit_s
        ready = told_kernel(self._trials.team, lambda: shelf.wait_for(shelf.find(slot, blueprint), limit_s=limit_s))
        if ready is None:  # the shelf has it or raises
            raise GraftFailed(f"grafting {blueprint} at {slot}", why="it has no kernel", todo="report this")
        seed_idx = self._candidates.free_seed(slot)
        if seed_idx is None:
            states = ", ".join(s.state.value for (name, _), s in self._trials.placement.seeds.items() if name == slot)
            raise GraftFailed(
                f"grafting at {slot}",
                why=f"no seed is free there: {states}",
                todo="growth.unlock(slot) frees a locked one",
            )
        return self.now(slot, seed_idx, ready, incubate=incubate)

    def now(self, slot: str, seed_idx: int, ready: ReadyKernel, *, incubate: int = 0) -> GrowthEvent:
        """Graft a kernel by hand, now; the budget binds controllers, not the user's own hand."""
        decision = AdaptationDecision(
            action=Action.LOAD_KERNEL, reason="by hand", run_id=self._trials.run_id, target_layer=slot, seed_idx=seed_idx,
            blueprint=ready.blueprint, kernel_id=ready.kernel_id, strategy=BY_HAND,
            decision_id=told_text(self._trials.team, lambda: new_id("decision")),
        )  # fmt: skip
        if incubate:
            return self._incubate_now(decision, ready, incubate)
        before = self._measured(slot)
        self._trials.placement.place(slot)
        self.before_join()
        self._trials.seeds.of(slot, seed_idx).move(SeedState.GERMINATED, step=self._trials.position.step)
        with self._changing():
            event = self._trials.join(decision, ready, before=before.mean, seen=before.seen)
        if event.kind is EventKind.CANCELLED:
            raise GraftFailed(f"grafting {ready.blueprint} at {slot}", why=event.why, todo="the host was restored")
        return event

    def _incubate_now(self, decision: AdaptationDecision, ready: ReadyKernel, steps: int) -> GrowthEvent:
        self._trials.seeds.of(str(decision.target_layer), decision.seed_idx).move(
            SeedState.GERMINATED, step=self._trials.position.step
        )
        self._prepare(decision, ready)
        event = self.incubations.begin(decision, ready, steps=steps)
        if event.kind is EventKind.CANCELLED:
            raise GraftFailed(f"incubating {ready.blueprint} at {decision.target_layer}", why=event.why)
        return event

    def _graduate(self, apprentice: Apprentice) -> GrowthEvent:
        slot = str(apprentice.decision.target_layer)
        if apprentice.decision.strategy != BY_HAND:
            price = self._trials.placement.place(slot).price(apprentice.kernel.ir)
            over = self._candidates.over_budget(
                self._trials.position.trials.values(), price, apprentice.ready.latency_ms
            )
            if why := "; ".join(over):
                return self.incubations.withdraw(apprentice, why=why)
        before = self._measured(slot)
        self.before_join()
        with self._changing():
            return self.incubations.graduate(apprentice, before=before.mean, seen=before.seen)

    def _check_allowed(self, decision: AdaptationDecision) -> None:
        """Refuse what was applied already, or has no free seed."""
        place = self._trials.placement.place(str(decision.target_layer))
        if any(
            event.decision_id == decision.decision_id
            for event in self._trials.events
            if event.kind in (EventKind.GRAFTED, EventKind.INCUBATING)
        ):
            raise Conflict(
                f"decision {decision.decision_id} was applied already", todo="give each decision an id of its own"
            )
        free = self._candidates.free_seed(place.name)
        if free is None or decision.seed_idx >= self._config.seeds_per_slot:
            raise Conflict(
                f"{place.name} has no free seed {decision.seed_idx}", todo="choose a candidate that is not masked"
            )
        seed = self._trials.seeds.of(place.name, decision.seed_idx)
        if seed.state is not SeedState.DORMANT:
            raise Conflict(f"seed {seed.seed_idx} of {place.name} is not free", why=f"it is {seed.state.value}")

    def _check_price(self, slot: str, ready: ReadyKernel | None) -> None:
        """Hold a kernel's own price against the budget, whoever asks for it and under whatever name."""
        if ready is None:
            return
        price = self._trials.placement.place(slot).price(unpack_kernel(ready.data).ir)
        over = list(self._candidates.over_budget(self._trials.position.trials.values(), price, ready.latency_ms))
        if over:
            raise UnsafeAdaptation(f"the kernel may not grow at {slot}", why="; ".join(over))

    def _kernel_of(self, decision: AdaptationDecision) -> ReadyKernel | None:
        if self._config.late is Late.WAIT:
            self.fetch(decision)
        return self._shelf.by_id(str(decision.kernel_id))

    def _prepare(self, decision: AdaptationDecision, ready: ReadyKernel) -> None:
        if self._trials.team.size > 1:
            return
        slot, seed_idx = str(decision.target_layer), decision.seed_idx
        self._observer.regions.prepare(slot, seed_idx, ready.data, kernel_id=ready.kernel_id)

    def _measured(self, slot: str) -> Measurement:
        """Return the held-out losses now, and an output of a slot."""
        place = self._trials.placement.slots[slot]
        return self._observer.measure(topology_version=self._trials.topology_version, capture=place.module)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Say that the model may have changed inside the block, also where that raised."""
        try:
            yield
        finally:
            self._changed()


def _nothing() -> None:
    """Do nothing before a graft joins."""
