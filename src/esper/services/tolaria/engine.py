"""What happens at a boundary: observe, decide, graft, evaluate, keep or undo."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from esper.contracts.adaptation import AdaptationDecision, Candidate
from esper.services.tolaria.acceptance import Judgement
from esper.services.tolaria.asking import Asking
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.candidates import Candidates
from esper.services.tolaria.config import GrowthConfig
from esper.services.tolaria.consultation import Consultation
from esper.services.tolaria.decisions import Decisions
from esper.services.tolaria.distributed.agreement import standing
from esper.services.tolaria.events import EventKind, EventLog, GrowthEvent
from esper.services.tolaria.governor import Governor
from esper.services.tolaria.grafting import Grafting
from esper.services.tolaria.incubator import Incubator
from esper.services.tolaria.observation import Observation, Observer, TrainingLoss
from esper.services.tolaria.platform import Parts
from esper.services.tolaria.reports import Reports
from esper.services.tolaria.shrinking import Rent, Worth, worths
from esper.services.tolaria.snapshot import Subject
from esper.services.tolaria.trials import Trials


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
        spent_steps: Optimizer steps taken, those of undone grafts included.
        grafting: Brings kernels into the model.
        reports: Tells others what happens.
    """

    def __init__(
        self, subject: Subject, parts: Parts, observer: Observer, budget: Budget, config: GrowthConfig
    ) -> None:
        self.events = EventLog(parts.folder.events if parts.folder.writes else None, parts.platform.bridge.watched)
        self.observer, self.spent_steps = observer, 0
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
        self._parts, self._config = parts, config
        self._candidates = Candidates(
            self.trials.placement, parts.shelf, budget, seeds_per_slot=config.seeds_per_slot,
            inherited_params=self.trials.inherited_params,
        )  # fmt: skip
        self.reports = Reports(parts, self.trials, budget)
        self.grafting = Grafting(
            parts.shelf, config, self.trials, self._candidates, self.consultation, observer, self.changed
        )
        self._asking = Asking(parts, config, self.trials, self._candidates, self.consultation, self.reports)
        self._last: Observation | None = None

    def boundary(self) -> list[GrowthEvent]:
        """Pass the next boundary.

        Returns:
            What happened.
        """
        position = self.trials.position
        position.boundary += 1
        self.grafting.request_kernels()
        events = self._asking.heard()
        decision = self.consultation.due(position.boundary)
        self._last = observation = self._observe(decision)
        self.observer.regions.follow()
        position.history.append(observation.point)
        self._parts.control.compare(observation.held_out.losses)
        undone = [] if self.governor is None else self.governor.boundary(observation.point.validation)
        events += undone
        rolled_back = any(event.kind is EventKind.ROLLED_BACK for event in undone)
        events += [] if rolled_back else self.trials.advance(last=self.trials.ended)
        if rolled_back:
            self.start_anew()
        elif any(event.kept is False for event in events):
            self.changed()
        else:
            events += self.grafting.graduations()
            events += [] if decision is None else self.grafting.carry_out(decision, observation)
        events += self._asking.nothing_grows()
        self._report(observation, events)
        self._asking.ask(observation)
        team = self.subject.team
        team.agree(f"the boundary at step {position.step}", position.boundary, *standing(team, self.subject.model))
        return events

    def between(self, loss: Tensor | None) -> list[GrowthEvent]:
        """Move along what moves after each optimizer step, and see whether it went wrong."""
        self.trials.rise()
        events = self.grafting.incubations.step(look=self.trials.position.step % self._config.every == 0)
        self.grafting.prepare_known()
        undone = [] if self.governor is None else self.governor.step(loss)
        if any(event.kind is EventKind.ROLLED_BACK for event in undone):
            self.start_anew()
            self.reports.outcomes()
        return events + undone

    def shrink(self, rent: Rent) -> list[GrowthEvent]:
        """Let every graft that was kept and does not earn its rent leave, the one that owes most first."""
        events: list[GrowthEvent] = []
        while owing := [worth for worth in self._worths() if worth.owes(rent) > 0]:
            worst = max(owing, key=lambda worth: worth.owes(rent))
            found = Judgement(worst.loss, worst.error, 0, True, f"it does not earn its rent: {worst.told(rent)}")
            events.append(self.trials.dismiss(worst.graft, found))
        if events:
            self._candidates.inherited_params = self.trials.inherited_params
            self.changed()
            self.reports.outcomes()
        return events

    def _worths(self) -> list[Worth]:
        return worths(self.subject.model, self.observer, self.subject.team)

    def start_anew(self) -> None:
        """After a rollback: nothing that was decided or measured since holds any more."""
        self.changed()
        self.observer.loss = TrainingLoss()
        if self.governor is not None:
            self.governor.start_anew()

    def candidates(self) -> tuple[Candidate, ...]:
        """Return every graft that could be made, with what speaks against it now."""
        self.grafting.request_kernels()
        scores = {} if self._last is None else self._last.scores
        return self._candidates.current(self.trials.position.trials.values(), scores)

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
        if (position.step + 1) % self._config.every or self.trials.ended:
            return False
        return self.consultation.due_next(position.boundary + 1)

    def changed(self) -> None:
        """The model is another one now: what was decided before is void, and the mean of its weights begins anew."""
        self.consultation.void()
        self.observer.average.reset()
        self.reports.manifest()

    def _settled(self, decision_id: str) -> bool:
        """Tell whether something became of a decision already."""
        return any(e.decision_id == decision_id and e.kind is not EventKind.LATE for e in self.events)

    def _report(self, observation: Observation, events: list[GrowthEvent]) -> None:
        if events:
            self.reports.manifest()
        self.reports.outcomes()
        self.reports.health(observation)

    def _observe(self, decision: AdaptationDecision | None) -> Observation:
        capture_at: nn.Module | None = None
        if decision is not None and decision.target_layer in self.trials.placement.slots:
            capture_at = self.trials.placement.slots[decision.target_layer].module
        return self.observer.observe(
            self.trials.position.step, topology_version=self.trials.topology_version, capture=capture_at
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what governor and control know, and what the controller was told; it learns it again where the run goes on."""
        governor = None if self.governor is None else self.governor.state_dict()
        return {"governor": governor, "told": self.reports.state_dict(), "control": self._parts.control.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        if self.governor is not None and state["governor"] is not None:
            self.governor.load_state_dict(state["governor"])
        self._parts.control.load_state_dict(state.get("control", {}))
        self.reports.load_state_dict(state["told"])
