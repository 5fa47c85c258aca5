"""What happens at a boundary: observe, decide, graft, evaluate, keep or undo."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from esper.blueprints import unpack_kernel
from esper.contracts.adaptation import OVER_BUDGET, Action, AdaptationDecision, Candidate, Outcome, SystemStatePacket
from esper.contracts.health import HealthBatch
from esper.contracts.ids import new_id
from esper.contracts.topics import HEALTH, OUTCOMES
from esper.errors import ConfigError, Conflict, EsperError, GraftFailed, UnsafeAdaptation
from esper.kasmina import Placement, SeedState, placement_of, topology
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.candidates import Candidates
from esper.services.tolaria.config import GrowthConfig, Late
from esper.services.tolaria.consultation import Consultation
from esper.services.tolaria.decisions import Decisions
from esper.services.tolaria.distributed.agreement import standing
from esper.services.tolaria.distributed.team import told_text
from esper.services.tolaria.distributed.words import told_kernel
from esper.services.tolaria.events import EventKind, EventLog, GrowthEvent
from esper.services.tolaria.governor import Governor
from esper.services.tolaria.incubator import Apprentice, Incubator
from esper.services.tolaria.kernels import ReadyKernel
from esper.services.tolaria.observation import Observation, Observer, TrainingLoss
from esper.services.tolaria.platform import Parts
from esper.services.tolaria.snapshot import Subject
from esper.services.tolaria.trials import Trials

BY_HAND = "manual"
"""Strategy of a decision that the user took."""


class Engine:
    """Carries a run from boundary to boundary.

    Args:
        subject: The training.
        parts: Services, kernels, folder.
        observer: Watches the training.
        budget: Limits on what may be added.
        config: Settings of the run.

    Attributes:
        events: What happened, in order.
        trials: The book, and the operations on the training.
        governor: Watches for a training that goes wrong, or None.
        consultation: The open question to the controller.
        decisions: The doors that decisions come through.
        observer: Watches the training.
        subject: The training, with what learns apart from it.
        before_join: Called right before a graft joins.
    """

    def __init__(
        self, subject: Subject, parts: Parts, observer: Observer, budget: Budget, config: GrowthConfig
    ) -> None:
        self._team = subject.team
        self.events = EventLog(parts.folder.events if parts.folder.writes else None, parts.platform.bridge.watched)
        self.observer = observer
        incubator = Incubator.beside(
            subject.model, subject.optimizer, subject.others, subject.team, whole=observer.regions.are_one
        )
        self.subject = subject = replace(subject, others=(*subject.others, incubator))
        self.trials = Trials(
            subject, config, self.events, run_id=parts.folder.run_id, incubator=incubator, control=parts.control
        )
        self.governor = (
            None
            if config.governor is None
            else Governor(subject, config.governor, self.trials, self.events, every=config.every)
        )
        self.decisions = Decisions(parts.folder.run_id, self._settled)
        self.consultation = Consultation(parts.platform, config, self.decisions)
        if parts.platform.shared is not None:
            self.decisions.listen(parts.platform.bridge, parts.platform.shared)
        self._subject, self._parts, self._budget, self._config = subject, parts, budget, config
        self._platform, self._run_id = parts.platform, parts.folder.run_id
        self._placement: Placement = placement_of(subject.model)
        self._candidates = Candidates(
            self._placement, parts.shelf, budget, seeds_per_slot=config.seeds_per_slot,
            inherited_params=self.trials.inherited_params,
        )  # fmt: skip
        self._last: Observation | None = None
        self._requested = False
        self._alone = False
        self._told: list[Outcome] = []
        self._prepared = ""
        self.before_join: Callable[[], None] = _nothing

    def boundary(self) -> list[GrowthEvent]:
        """Pass the next boundary.

        Returns:
            What happened.
        """
        position = self.trials.position
        position.boundary += 1
        self.request_kernels()
        events = self._ask_after()
        decision = self.consultation.due(position.boundary)
        self._last = observation = self._observe(decision)
        self.observer.regions.follow()
        position.history.append(observation.point)
        self._parts.control.compare(observation.held_out.losses)
        undone = [] if self.governor is None else self.governor.boundary(observation.point.validation)
        events += undone
        rolled_back = any(event.kind is EventKind.ROLLED_BACK for event in undone)
        events += [] if rolled_back else self.trials.advance(last=self.ended)
        if rolled_back:
            self.start_anew()
        elif any(event.kept is False for event in events):
            self.changed()
        else:
            events += self._graduations()
            events += [] if decision is None else self._carry_out(decision, observation)
        events += self._nothing_grows()
        self._publish(observation, events)
        self._consult(observation)
        self._team.agree(
            f"the boundary at step {position.step}", position.boundary, *standing(self._team, self._subject.model)
        )
        return events

    def between(self, loss: Tensor | None) -> list[GrowthEvent]:
        """Move along what moves after each optimizer step, and see whether it went wrong."""
        events = self.trials.between(look=self.trials.position.step % self._config.every == 0)
        self._prepare_known()
        undone = [] if self.governor is None else self.governor.step(loss)
        if any(event.kind is EventKind.ROLLED_BACK for event in undone):
            self.start_anew()
            self.report()
        return events + undone

    def start_anew(self) -> None:
        """After a rollback: nothing that was decided or measured since holds any more."""
        self.changed()
        self.observer.loss = TrainingLoss()
        if self.governor is not None:
            self.governor.start_anew()

    def candidates(self) -> tuple[Candidate, ...]:
        """Return every graft that could be made, with what speaks against it now."""
        self.request_kernels()
        scores = {} if self._last is None else self._last.scores
        return self._candidates.current(self.trials.position.trials.values(), scores)

    def graft_by_hand(self, slot: str, blueprint: str, *, incubate: int = 0) -> GrowthEvent:
        """Graft a blueprint now, waiting for its kernel; see ``Growth.graft``."""
        self.request_kernels(demanded=True)
        self._team.agree("growth.graft", self.trials.position.step, slot, blueprint)
        shelf, limit_s = self._parts.shelf, self._config.wait_limit_s
        ready = told_kernel(self._team, lambda: shelf.wait_for(shelf.find(slot, blueprint), limit_s=limit_s))
        if ready is None:  # the shelf has it or raises
            raise GraftFailed(f"grafting {blueprint} at {slot}", why="it has no kernel", todo="report this")
        seed_idx = self._candidates.free_seed(slot)
        if seed_idx is None:
            states = ", ".join(s.state.value for (name, _), s in self._placement.seeds.items() if name == slot)
            raise GraftFailed(
                f"grafting at {slot}",
                why=f"no seed is free there: {states}",
                todo="growth.unlock(slot) frees a locked one",
            )
        return self.graft_now(slot, seed_idx, ready, incubate=incubate)

    async def kernel_for(self, slot: str, kernel_id: str) -> ReadyKernel:
        """Fetch any validated kernel of the library for a slot."""
        self._placement.place(slot)
        return await self._parts.shelf.fetch(kernel_id)

    def fetch(self, decision: AdaptationDecision) -> None:
        """Wait for the kernel of a decision; where it cannot be had, the boundary of its joining says so."""
        if not self._team.leads:
            return
        shelf, limit_s = self._parts.shelf, self._config.wait_limit_s
        self.request_kernels()
        with suppress(EsperError):  # what is not among the offers is asked for by its address alone
            shelf.wait_for(shelf.find(str(decision.target_layer), str(decision.blueprint)), limit_s=limit_s)
        with suppress(EsperError):
            shelf.wait_for_id(str(decision.kernel_id), limit_s=limit_s)

    def request_kernels(self, *, demanded: bool = False) -> None:
        """Ask the forge for every eligible kernel, once, as soon as the shapes of the slots are known.

        Raises:
            ConfigError: If they are demanded now and the shapes are not known.
        """
        if not self._requested and self._placement.ready:
            self._parts.shelf.request(self._placement.slots.values())
            self._requested = True
        elif demanded and not self._requested:
            raise ConfigError(
                "the shapes of the slots are not known yet",
                todo="give esper.wrap an example= input, or run the model once",
                code="ESP-2150",
            )

    def watch_next(self, watched: Mapping[str, Any] | None = None) -> None:
        """Watch the next step where a boundary follows it.

        Args:
            watched: What was seen of that step already, where a run goes on in the middle of it.
        """
        config, step = self._config, self.trials.position.step
        over = config.steps is not None and step >= config.steps
        if (step + 1) % config.every == 0 and not over and self._parts.shelf.offers:
            self.observer.arm(watched or {})

    @property
    def graft_due(self) -> bool:
        """Whether a decision is known that is carried out at the end of the next step."""
        position = self.trials.position
        if (position.step + 1) % self._config.every or self.ended:
            return False
        return self.consultation.due_next(position.boundary + 1)

    def changed(self) -> None:
        """The model is another one now: what was decided before is void, and the mean of its weights begins anew."""
        self.consultation.void()
        self.observer.average.reset()
        self.write_manifest()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Say that the model may have changed inside the block, also where that raised."""
        try:
            yield
        finally:
            self.changed()

    def write_manifest(self) -> None:
        """Write down what is grafted now."""
        content = {
            "run_id": self._run_id,
            "step": self.trials.position.step,
            "host_params": self.trials.host_params,
            "budget": asdict(self._budget),
            "grafts": [
                {**asdict(entry), "state": self.trials.seed(entry.slot, entry.seed_idx).state.value}
                for entry in topology(self._subject.model)
            ],
        }
        if self._alone or self._platform.running.done():
            self._parts.folder.write_manifest(content)
            return
        self._platform.bridge.post(self._parts.folder.written(content))

    @property
    def ended(self) -> bool:
        """Whether the planned length ends before the next boundary."""
        steps = self._config.steps
        return steps is not None and self.trials.position.step + self._config.every > steps

    # -- the controller ----------------------------------------------------------------------------------------------

    def _ask_after(self) -> list[GrowthEvent]:
        """Take the controller's answer in; where it could not be asked, training goes on and the log says so."""
        if told_text(self._team, lambda: str(self._platform.running.done())) == "True":
            already, self._alone = self._alone, True
            why = "" if already else told_text(self._team, lambda: _obituary(self._platform.running))
        else:
            position = self.trials.position
            why = self.consultation.heard(self._team, self.trials.topology_version, position.boundary) or ""
        return [*([self._log(EventKind.UNASKED, why=why)] if why else []), *self._refusals()]

    def _refusals(self) -> list[GrowthEvent]:
        """Write down what was refused of what the bus brought, and tell whoever decided it."""
        refusals, self.consultation.refusals = self.consultation.refusals, []
        for refusal in refusals if self._team.leads else ():
            outcome = refusal.outcome(self._run_id)
            publishing = self._platform.bus.publish(OUTCOMES.stream, outcome, run_id=self._run_id)
            self._platform.bridge.post(publishing)
        return [self._log(EventKind.CANCELLED, r.decision, why=r.why, kept=False) for r in refusals]

    def _settled(self, decision_id: str) -> bool:
        """Tell whether something became of a decision already."""
        return any(e.decision_id == decision_id and e.kind is not EventKind.LATE for e in self.events)

    def _consult(self, observation: Observation) -> None:
        if self.consultation.open or self.ended or self._alone or not self._team.leads:
            return
        self.consultation.ask(self._packet(observation))

    def _packet(self, observation: Observation) -> SystemStatePacket:
        position, config = self.trials.position, self._config
        if config.late is Late.WAIT:
            self._parts.shelf.settle(limit_s=config.wait_limit_s)
        host = self.trials.host_params
        return SystemStatePacket(
            run_id=self._run_id,
            boundary=position.boundary,
            step=position.step,
            every=config.every,
            steps=config.steps,
            topology_version=self.trials.topology_version,
            lead=config.lead,
            host_params=host,
            params=host + sum(trial.params for trial in position.trials.values()),
            max_params=None if self._budget.params is None else host + self._budget.params,
            history=tuple(position.history[-config.history_length :]),
            grafts=tuple(position.grafts),
            slots=self._candidates.slots(observation.health),
            candidates=self._candidates.current(position.trials.values(), observation.scores),
        )

    def _nothing_grows(self) -> list[GrowthEvent]:
        """Say at the first boundary that nothing can grow, and at the end that nothing did; and why."""
        if self.trials.position.boundary == 1 and (why := told_text(self._team, self._why_too_dear)):
            return [self._log(EventKind.NOTHING, why=why)]
        quiet = not any(event.kind in (EventKind.GRAFTED, EventKind.NOTHING) for event in self.events)
        if not (self.ended and quiet):
            return []
        return [self._log(EventKind.NOTHING, why=told_text(self._team, self._why_nothing))]

    def _why_too_dear(self) -> str:
        """Name the cheapest candidate where every one of them is over budget."""
        candidates = self.candidates()
        over = [c for c in candidates if any(mask.startswith(OVER_BUDGET) for mask in c.masked)]
        if not over or len(over) < len(candidates):
            return ""
        cheapest = min(over, key=lambda c: c.params)
        mask = next(mask for mask in cheapest.masked if mask.startswith(OVER_BUDGET))
        return f"the cheapest graft, {cheapest.blueprint} at {cheapest.slot}, is {mask}; raise budget="

    def _why_nothing(self) -> str:
        shelf = self._parts.shelf
        if shelf.offers and all(shelf.ready(offer) is None for offer in shelf.offers):
            refused = [why for offer in shelf.offers if (why := shelf.refusal(offer)) is not None]
            return refused[0] if refused else 'the run ended before its first kernel was compiled; use late="wait"'
        return self.consultation.last_reason or "the controller asked for nothing"

    # -- grafting ----------------------------------------------------------------------------------------------------

    def _observe(self, decision: AdaptationDecision | None) -> Observation:
        capture_at: nn.Module | None = None
        if decision is not None and decision.target_layer in self._placement.slots:
            capture_at = self._placement.slots[decision.target_layer].module
        return self.observer.observe(
            self.trials.position.step, topology_version=self.trials.topology_version, capture=capture_at
        )

    def _carry_out(self, decision: AdaptationDecision, observation: Observation) -> list[GrowthEvent]:
        """Graft what was decided, where its kernel is here; at a later boundary otherwise, and the log says so."""
        late = self.consultation.lateness(self.trials.position.boundary)
        if self.ended:
            self.consultation.done()
            return [self._log(EventKind.CANCELLED, decision, why="the run ends at this boundary", kept=False)]
        try:
            self._check_allowed(decision)
            ready = told_kernel(self._team, lambda: self._kernel_of(decision))
            self._check_price(str(decision.target_layer), ready)
        except EsperError as error:
            self.consultation.done()
            return [self._log(EventKind.CANCELLED, decision, why=str(error), kept=False)]
        if ready is None:
            why = "its kernel is not here; it joins when it comes"
            return [] if late else [self._log(EventKind.LATE, decision, why=why)]
        events = [self._log(EventKind.LATE, decision, why=f"joins {late} boundaries late")] if late else []
        if not self._config.incubate:
            self.before_join()
        seed = self.trials.seed(str(decision.target_layer), decision.seed_idx)
        seed.move(SeedState.GERMINATED, step=self.trials.position.step)
        if self._config.incubate:
            self.consultation.done()
            self._prepare(decision, ready)
            return [*events, self.trials.incubate(decision, ready, steps=self._config.incubate)]
        self.consultation.done()
        seen = observation.held_out.seen
        with self._changing():
            events.append(self.trials.join(decision, ready, before=observation.point.validation, seen=seen))
        return events

    def _prepare_known(self) -> None:
        """Let what a decision will change be compiled as soon as decision and kernel are here, ahead of its boundary.

        Of several processes only the one that leads knows of it so early; they compile at the join.
        """
        known = None if self.observer.regions.are_watched else self.consultation.known
        if known is None or known.decision.decision_id == self._prepared:
            return
        if (ready := self._parts.shelf.held(str(known.decision.kernel_id))) is not None:
            self._prepared = known.decision.decision_id
            self._prepare(known.decision, ready)

    def _prepare(self, decision: AdaptationDecision, ready: ReadyKernel) -> None:
        if self._team.size > 1:
            return
        slot, seed_idx = str(decision.target_layer), decision.seed_idx
        self.observer.regions.prepare(slot, seed_idx, ready.data, kernel_id=ready.kernel_id)

    def _kernel_of(self, decision: AdaptationDecision) -> ReadyKernel | None:
        if self._config.late is Late.WAIT:
            self.fetch(decision)
        return self._parts.shelf.by_id(str(decision.kernel_id))

    def _graduations(self) -> list[GrowthEvent]:
        """Let what has learned apart for long enough join; at the end of the run nothing joins any more."""
        events = []
        for apprentice in list(self.trials.incubator.apprentices.values()):
            if self.ended:
                events.append(self.trials.withdraw(apprentice, why="the run ends while it learns apart"))
            elif apprentice.left <= 0:
                events.append(self._graduate(apprentice))
        return events

    def _graduate(self, apprentice: Apprentice) -> GrowthEvent:
        slot = str(apprentice.decision.target_layer)
        if apprentice.decision.strategy != BY_HAND:
            price = self._placement.place(slot).price(apprentice.kernel.ir)
            over = self._candidates.over_budget(
                self.trials.position.trials.values(), price, apprentice.ready.latency_ms
            )
            if why := "; ".join(over):
                return self.trials.withdraw(apprentice, why=why)
        before = self.observer.measure(
            topology_version=self.trials.topology_version, capture=self._placement.slots[slot].module
        )
        self.before_join()
        with self._changing():
            return self.trials.graduate(apprentice, before=before.mean, seen=before.seen)

    def _check_allowed(self, decision: AdaptationDecision) -> None:
        """Refuse what was applied already, or has no free seed."""
        place = self._placement.place(str(decision.target_layer))
        if any(
            event.decision_id == decision.decision_id
            for event in self.events
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
        seed = self.trials.seed(place.name, decision.seed_idx)
        if seed.state is not SeedState.DORMANT:
            raise Conflict(f"seed {seed.seed_idx} of {place.name} is not free", why=f"it is {seed.state.value}")

    def _check_price(self, slot: str, ready: ReadyKernel | None) -> None:
        """Hold a kernel's own price against the budget, whoever asks for it and under whatever name."""
        if ready is None:
            return
        price = self._placement.place(slot).price(unpack_kernel(ready.data).ir)
        over = list(self._candidates.over_budget(self.trials.position.trials.values(), price, ready.latency_ms))
        if over:
            raise UnsafeAdaptation(f"the kernel may not grow at {slot}", why="; ".join(over))

    def graft_now(self, slot: str, seed_idx: int, ready: ReadyKernel, *, incubate: int = 0) -> GrowthEvent:
        """Graft a kernel by hand, now; the budget binds controllers, not the user's own hand."""
        decision = AdaptationDecision(
            action=Action.LOAD_KERNEL, reason="by hand", run_id=self._run_id, target_layer=slot, seed_idx=seed_idx,
            blueprint=ready.blueprint, kernel_id=ready.kernel_id, strategy=BY_HAND,
            decision_id=told_text(self._team, lambda: new_id("decision")),
        )  # fmt: skip
        if incubate:
            return self._incubate_now(decision, ready, incubate)
        before = self.observer.measure(
            topology_version=self.trials.topology_version, capture=self._placement.slots[slot].module
        )
        self._placement.place(slot)
        self.before_join()
        self.trials.seed(slot, seed_idx).move(SeedState.GERMINATED, step=self.trials.position.step)
        with self._changing():
            event = self.trials.join(decision, ready, before=before.mean, seen=before.seen)
        if event.kind is EventKind.CANCELLED:
            raise GraftFailed(f"grafting {ready.blueprint} at {slot}", why=event.why, todo="the host was restored")
        return event

    def _incubate_now(self, decision: AdaptationDecision, ready: ReadyKernel, steps: int) -> GrowthEvent:
        self.trials.seed(str(decision.target_layer), decision.seed_idx).move(
            SeedState.GERMINATED, step=self.trials.position.step
        )
        self._prepare(decision, ready)
        event = self.trials.incubate(decision, ready, steps=steps)
        if event.kind is EventKind.CANCELLED:
            raise GraftFailed(f"incubating {ready.blueprint} at {decision.target_layer}", why=event.why)
        return event

    # -- what leaves the run -----------------------------------------------------------------------------------------

    def _publish(self, observation: Observation, events: list[GrowthEvent]) -> None:
        if events:
            self.write_manifest()
        self.report()
        if observation.health and not self._alone and self._team.leads:
            batch = HealthBatch(run_id=self._run_id, step=observation.point.step, signals=observation.health)
            publishing = self._platform.bus.publish(HEALTH.stream, batch, run_id=self._run_id)
            self._platform.bridge.post(publishing, droppable=True)

    def report(self) -> None:
        """Tell bus, library and controller what became of grafts; where they are gone, the event log has it."""
        outcomes, self.trials.outcomes = self.trials.outcomes, []
        self._told += outcomes
        if self._alone or not self._team.leads:
            return
        bridge, run_id = self._platform.bridge, self._run_id
        for outcome in outcomes:
            bridge.post(self._platform.bus.publish(OUTCOMES.stream, outcome, run_id=run_id))
            bridge.post(self._platform.library.report(outcome))
            bridge.post(self._platform.advisor.learn(outcome))

    def state_dict(self) -> dict[str, Any]:
        """Return what governor and control know, and what the controller was told; it learns it again where the run goes on."""
        governor = None if self.governor is None else self.governor.state_dict()
        told = [outcome.model_dump(mode="json") for outcome in self._told]
        return {"governor": governor, "told": told, "control": self._parts.control.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        if self.governor is not None and state["governor"] is not None:
            self.governor.load_state_dict(state["governor"])
        self._parts.control.load_state_dict(state.get("control", {}))
        known, self._told = self._told, [Outcome(**{**outcome, "run_id": self._run_id}) for outcome in state["told"]]
        for outcome in [o for o in self._told if o not in known] if self._team.leads else ():
            self._platform.bridge.post(self._platform.advisor.learn(outcome))

    def _log(
        self, kind: EventKind, decision: AdaptationDecision | None = None, *, why: str, kept: bool | None = None
    ) -> GrowthEvent:
        of = decision or AdaptationDecision(decision_id="")
        return self.events.append(
            GrowthEvent(
                step=self.trials.position.step, kind=kind, why=why, slot=of.target_layer or "", seed_idx=of.seed_idx,
                blueprint=of.blueprint or "", kernel_id=of.kernel_id or "", decision_id=of.decision_id, kept=kept,
            )
        )  # fmt: skip


def _nothing() -> None:
    """Do nothing before a graft joins."""


def _obituary(running: Future[None]) -> str:
    error = None if running.cancelled() else running.exception()
    causes = "; ".join(map(str, _leaves(error))) if error is not None else "they were closed"
    return f"the background services ended, and the run goes on without them: {causes}"


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in nested groups."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
