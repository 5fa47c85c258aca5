"""The engine behind ``esper.attach``: observe, decide, graft, evaluate, keep or undo."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from esper.contracts.adaptation import Action, AdaptationDecision, Candidate, SystemStatePacket
from esper.contracts.health import HealthBatch
from esper.contracts.topics import HEALTH, OUTCOMES
from esper.errors import ConfigError, Conflict, EsperError, GraftFailed, UnsafeAdaptation
from esper.kasmina import Placement, SeedState, placement_of, topology
from esper.ports import Advisor, Library, MessageBus
from esper.runtime.background import Bridge
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.candidates import OVER_BUDGET, Candidates
from esper.services.tolaria.config import GrowthConfig, Late
from esper.services.tolaria.consultation import Consultation
from esper.services.tolaria.events import EventKind, EventLog, GrowthEvent
from esper.services.tolaria.folder import RunFolder
from esper.services.tolaria.kernels import KernelShelf, ReadyKernel
from esper.services.tolaria.observation import Observation, Observer
from esper.services.tolaria.snapshot import Snapshot, Subject, capture, digest, restore
from esper.services.tolaria.trials import Trials

STATE_VERSION = 1


@dataclass(frozen=True)
class Parts:
    """What a run works with, made by the composition root.

    Attributes:
        bridge: Way to the background loop.
        library: Blueprints and kernels.
        bus: Where health, decisions and outcomes go.
        advisor: The controller.
        shelf: Kernels that were asked for.
        folder: Where the run writes.
        running: Ends when the services end; with their error where they failed.
        close: Ends what the composition root started.
    """

    bridge: Bridge
    library: Library
    bus: MessageBus
    advisor: Advisor
    shelf: KernelShelf
    folder: RunFolder
    running: Future[None]
    close: Callable[[], None]


class Growth:
    """A training that grows; made by ``esper.attach``.

    Attributes:
        run_id: Names the run.
        events: What happened, in order.
        spent_steps: Optimizer steps taken, those of undone grafts included.
    """

    def __init__(
        self, subject: Subject, parts: Parts, observer: Observer, budget: Budget, config: GrowthConfig
    ) -> None:
        self.run_id = parts.folder.run_id
        self.events = EventLog(parts.folder.events)
        self.spent_steps = 0
        self._subject, self._parts, self._observer, self._config = subject, parts, observer, config
        self._budget = budget
        self._placement: Placement = placement_of(subject.model)
        self._candidates = Candidates(self._placement, parts.shelf, budget, seeds_per_slot=config.seeds_per_slot)
        self._trials = Trials(subject, config, self.events, run_id=self.run_id)
        self._consultation = Consultation(parts.advisor, parts.bus, parts.bridge, config)
        self._last: Observation | None = None
        self._requested = False
        self._alone = False
        self._placement.grower = self
        self._request_kernels()
        self._write_manifest()

    # -- what users call ---------------------------------------------------------------------------------------------

    def step(self, loss: Tensor | float | None = None) -> list[GrowthEvent]:
        """Take note of one optimizer step; at a boundary observe, decide, graft, evaluate, keep or undo.

        Args:
            loss: The step's training loss; read once per boundary, never synchronised in between.

        Returns:
            What happened; empty between boundaries.
        """
        position = self._trials.position
        position.step += 1
        self.spent_steps += 1
        value = None if loss is None else torch.as_tensor(loss)
        self._observer.step(position.step, value, probe_next=self._probes_next(position.step))
        return self._at_boundary() if position.step % self._config.every == 0 else []

    def propose(self) -> tuple[Candidate, ...]:
        """Return every graft that could be made: its price, its score, and what speaks against it now."""
        self._request_kernels()
        scores = {} if self._last is None else self._last.scores
        return self._candidates.current(self._trials.position.trials.values(), scores)

    def graft(self, slot: str, blueprint: str) -> GrowthEvent:
        """Graft a blueprint by hand, now; waits for its kernel where the forge is not done.

        Raises:
            NotFound: If there is no such slot, or the blueprint does not fit it.
            KernelRejected: If the forge refused it.
            GraftFailed: If it cannot be joined; the host was restored.
        """
        self._request_kernels(demanded=True)
        ready = self._parts.shelf.wait_for(self._parts.shelf.find(slot, blueprint), limit_s=self._config.wait_limit_s)
        return self._graft_now(slot, self._free_seed(slot), blueprint, ready)

    def rollback(self, event: GrowthEvent) -> GrowthEvent:
        """Undo a graft and everything since: model, optimizer, schedule, generators and ``state=``, to the bit.

        Args:
            event: The event of its joining.

        Raises:
            NotFound: If the state before that join is not held any more.
        """
        undone = self._trials.roll_back(event, why="by hand")
        self._after_change()
        return undone

    def digest(self) -> str:
        """Return one SHA-256 over every parameter, buffer and optimizer moment: equal states, equal digests."""
        return digest(self._subject)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, model and optimizer included, as plain containers and tensors."""
        self._consultation.settle()
        return {
            "version": STATE_VERSION,
            "spent_steps": self.spent_steps,
            "training": capture(self._subject).to_dict(),
            "trials": self._trials.state_dict(),
            "observer": self._observer.state_dict(),
            "consultation": self._consultation.state_dict(),
            "events": [event.to_json() for event in self.events],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``: topology first, then every value, to the bit.

        Args:
            state: Of a run with the same host, optimizer, schedule and ``state=``.

        Raises:
            ConfigError: If it was written by a version that this one does not know.
        """
        if state.get("version") != STATE_VERSION:
            raise ConfigError(f"growth state of version {state.get('version')!r}", why=f"{STATE_VERSION} is known")
        restore(self._subject, Snapshot.from_dict(state["training"]))
        self._trials.load_state_dict(state["trials"])
        self._observer.load_state_dict(state["observer"])
        self._consultation.load_state_dict(state["consultation"])
        self.spent_steps = state["spent_steps"]
        self.events.extend([GrowthEvent.from_json(event) for event in state["events"]])
        if self._probes_next(self._trials.position.step):
            self._observer.arm()
        self._write_manifest()

    def close(self) -> None:
        """End the run's services; the model stays as it is, and may be attached again."""
        if self._placement.grower is self:
            self._placement.grower = None
            self._observer.close()
            self._consultation.void()
            try:
                self._parts.bridge.flush()
            finally:
                self._parts.close()

    # -- what users read ---------------------------------------------------------------------------------------------

    @property
    def waits(self) -> int:
        """Calls that blocked training for over 1 ms, without those that ``late="wait"`` asked for."""
        return self._parts.bridge.waits.unwanted

    @property
    def late_waits(self) -> int:
        """Waits that ``late="wait"`` or a graft by hand asked for."""
        return self._parts.bridge.waits.deliberate

    @property
    def flops(self) -> dict[str, int]:
        """Floating-point operations that Esper itself spent: held-out evaluation and bottleneck statistics."""
        return {"evaluation": self._observer.held_out.spent_flops, "statistics": self._observer.statistics_flops}

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped or failed in the background, and how often the controller could not be asked."""
        bridge = self._parts.bridge
        return {
            "dropped": bridge.dropped,
            "failures": len(bridge.failures),
            "unasked": self._consultation.unasked_count,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- a boundary --------------------------------------------------------------------------------------------------

    def _at_boundary(self) -> list[GrowthEvent]:
        position = self._trials.position
        position.boundary += 1
        self._request_kernels()
        events = self._ask_after(position.boundary)
        decision = self._consultation.due(position.boundary)
        self._last = observation = self._observe(decision)
        position.history.append(observation.point)
        events += self._trials.advance(last=self._ended)
        if any(event.kept is False for event in events):
            self._after_change()
        elif decision is not None:
            events += self._carry_out(decision, observation)
        self._consult(observation)
        self._publish(observation, events)
        return events

    def _observe(self, decision: AdaptationDecision | None) -> Observation:
        capture_at: nn.Module | None = None
        if decision is not None and decision.target_layer in self._placement.slots:
            capture_at = self._placement.slots[decision.target_layer].module
        return self._observer.observe(
            self._trials.position.step, topology_version=self._trials.topology_version, capture=capture_at
        )

    def _ask_after(self, boundary: int) -> list[GrowthEvent]:
        """Take the controller's answer in; where it could not be asked, training goes on and the log says so."""
        if self._parts.running.done() and not self._alone:
            self._alone = True
            return [self._log(EventKind.UNASKED, AdaptationDecision(), _obituary(self._parts.running))]
        failure = self._consultation.collect(boundary, self._trials.topology_version)
        return [] if failure is None else [self._log(EventKind.UNASKED, AdaptationDecision(), str(failure))]

    def _carry_out(self, decision: AdaptationDecision, observation: Observation) -> list[GrowthEvent]:
        """Graft what was decided, where its kernel is here; at a later boundary otherwise, and the log says so."""
        late = self._consultation.lateness(self._trials.position.boundary)
        try:
            self._check_allowed(decision)
            ready = self._parts.shelf.by_id(str(decision.kernel_id))
        except EsperError as error:
            self._consultation.done()
            return [self._log(EventKind.CANCELLED, decision, str(error))]
        if ready is None:
            return (
                [] if late else [self._log(EventKind.LATE, decision, "its kernel is not here; it joins when it comes")]
            )
        events = [self._log(EventKind.LATE, decision, f"joined {late} boundaries late")] if late else []
        self._consultation.done()
        self._trials.seed(str(decision.target_layer), decision.seed_idx).move(
            SeedState.GERMINATED, step=self._trials.position.step
        )
        seen = observation.held_out.seen
        events.append(self._trials.join(decision, ready, before=observation.point.validation, seen=seen))
        self._after_change()
        return events

    def _check_allowed(self, decision: AdaptationDecision) -> None:
        """Refuse what the packet masks, whoever asks for it; a kernel that is not ready is late, not refused."""
        place = self._placement.place(str(decision.target_layer))
        seed = self._trials.seed(place.name, decision.seed_idx)
        if seed.state is not SeedState.DORMANT:
            raise Conflict(f"seed {seed.seed_idx} of {place.name} is not free", why=f"it is {seed.state.value}")
        for candidate in self.propose():
            over = [mask for mask in candidate.masked if mask.startswith(OVER_BUDGET)]
            if over and (candidate.slot, candidate.blueprint) == (place.name, decision.blueprint):
                raise UnsafeAdaptation(f"{candidate.blueprint} at {place.name} may not grow", why="; ".join(over))

    def _consult(self, observation: Observation) -> None:
        if self._consultation.open or self._ended or self._alone:
            return
        self._consultation.ask(self._packet(observation))

    def _packet(self, observation: Observation) -> SystemStatePacket:
        position, config = self._trials.position, self._config
        if config.late is Late.WAIT:
            self._parts.shelf.settle(limit_s=config.wait_limit_s)
        host = self._trials.host_params
        return SystemStatePacket(
            run_id=self.run_id,
            boundary=position.boundary,
            step=position.step,
            every=config.every,
            steps=config.steps,
            topology_version=self._trials.topology_version,
            lead=config.lead,
            host_params=host,
            params=host + sum(trial.params for trial in position.trials.values()),
            max_params=None if self._budget.params is None else host + self._budget.params,
            history=tuple(position.history[-config.history_length :]),
            grafts=tuple(position.grafts),
            slots=self._candidates.slots(observation.health),
            candidates=self._candidates.current(position.trials.values(), observation.scores),
        )

    def _publish(self, observation: Observation, events: list[GrowthEvent]) -> None:
        parts, run_id = self._parts, self.run_id
        if events:
            self._write_manifest()
        if self._alone:
            return
        if observation.health:
            batch = HealthBatch(run_id=run_id, step=observation.point.step, signals=observation.health)
            parts.bridge.post(parts.bus.publish(HEALTH.stream, batch, run_id=run_id), droppable=True)
        outcomes, self._trials.outcomes = self._trials.outcomes, []
        for outcome in outcomes:
            parts.bridge.post(parts.bus.publish(OUTCOMES.stream, outcome, run_id=run_id))
            parts.bridge.post(parts.library.report(outcome))
            parts.bridge.post(parts.advisor.learn(outcome))

    # -- odds and ends -----------------------------------------------------------------------------------------------

    @property
    def _ended(self) -> bool:
        steps = self._config.steps
        return steps is not None and self._trials.position.step >= steps

    def _probes_next(self, step: int) -> bool:
        return (step + 1) % self._config.every == 0 and not self._ended and bool(self._parts.shelf.offers)

    def _request_kernels(self, *, demanded: bool = False) -> None:
        if not self._requested and self._placement.ready:
            self._parts.shelf.request(self._placement.slots.values())
            self._requested = True
        elif demanded and not self._requested:
            raise ConfigError(
                "the shapes of the slots are not known yet",
                todo="give esper.wrap an example= input, or run the model once",
                code="ESP-2150",
            )

    def _free_seed(self, slot: str) -> int:
        seed_idx = self._candidates.free_seed(slot)
        if seed_idx is None:
            raise GraftFailed(f"grafting at {slot}", why="no seed of this slot is free", todo="roll one back first")
        return seed_idx

    def _graft_now(self, slot: str, seed_idx: int, blueprint: str, ready: ReadyKernel) -> GrowthEvent:
        decision = AdaptationDecision(
            action=Action.LOAD_KERNEL, reason="by hand", run_id=self.run_id, target_layer=slot, seed_idx=seed_idx,
            blueprint=blueprint, kernel_id=ready.kernel_id, strategy="manual",
        )  # fmt: skip
        seed = self._trials.seed(slot, seed_idx)
        seed.move(SeedState.GERMINATED, step=self._trials.position.step)
        before = self._observer.held_out.measure(
            topology_version=self._trials.topology_version, capture=self._placement.slots[slot].module
        )
        event = self._trials.join(decision, ready, before=before.mean, seen=before.seen)
        self._after_change()
        if event.kind is EventKind.CANCELLED:
            raise GraftFailed(f"grafting {blueprint} at {slot}", why=event.why, todo="the host was restored")
        return event

    async def graft_kernel(self, layer_name: str, seed_idx: int, kernel_id: str) -> None:
        """Graft any validated kernel of the library; ``model.load_kernel`` comes here while a run is attached."""
        ready = await self._parts.shelf.fetch(kernel_id)
        self._graft_now(layer_name, seed_idx, ready.blueprint, ready)

    def _log(self, kind: EventKind, decision: AdaptationDecision, why: str) -> GrowthEvent:
        return self.events.append(
            GrowthEvent(
                step=self._trials.position.step, kind=kind, why=why, slot=decision.target_layer or "",
                seed_idx=decision.seed_idx, blueprint=decision.blueprint or "", decision_id=decision.decision_id,
            )
        )  # fmt: skip

    def _after_change(self) -> None:
        """The model is another one now: what was decided before is void, and the mean of its weights begins anew."""
        self._consultation.void()
        self._observer.average.reset()
        self._write_manifest()

    def _write_manifest(self) -> None:
        position = self._trials.position
        self._parts.folder.write_manifest(
            {
                "run_id": self.run_id,
                "step": position.step,
                "host_params": self._trials.host_params,
                "budget": asdict(self._budget),
                "grafts": [
                    {**asdict(entry), "state": self._trials.seed(entry.slot, entry.seed_idx).state.value}
                    for entry in topology(self._subject.model)
                ],
            }
        )


def _obituary(running: "Future[None]") -> str:
    error = None if running.cancelled() else running.exception()
    return f"the background services ended, and the run goes on without them: {error or 'they were closed'}"
