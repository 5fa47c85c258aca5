"""The controller at a boundary: its answer is taken in, and it is told what there is; training goes on without it, too."""

from concurrent.futures import Future

from esper.contracts.adaptation import OVER_BUDGET, SystemStatePacket
from esper.services.tolaria.candidates import Candidates
from esper.services.tolaria.config import GrowthConfig, Late
from esper.services.tolaria.consultation import Consultation
from esper.services.tolaria.distributed.team import told_text
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.observation import Observation
from esper.services.tolaria.platform import Parts
from esper.services.tolaria.reports import Reports
from esper.services.tolaria.trials import Trials


class Asking:
    """Speaks with the controller.

    Args:
        parts: Services and kernels.
        config: Settings of the run.
        trials: The book of the run.
        candidates: What could be grafted.
        consultation: The open question.
        reports: Says whether anybody is there to be asked.
    """

    def __init__(
        self,
        parts: Parts,
        config: GrowthConfig,
        trials: Trials,
        candidates: Candidates,
        consultation: Consultation,
        reports: Reports,
    ) -> None:
        self._platform, self._shelf, self._config = parts.platform, parts.shelf, config
        self._trials, self._candidates = trials, candidates
        self._consultation, self._reports = consultation, reports

    def heard(self) -> list[GrowthEvent]:
        """Take the controller's answer in; where it could not be asked, training goes on and the log says so."""
        if told_text(self._trials.team, lambda: str(self._platform.running.done())) == "True":
            already, self._reports.alone = self._reports.alone, True
            why = "" if already else told_text(self._trials.team, lambda: _obituary(self._platform.running))
        else:
            position = self._trials.position
            why = self._consultation.heard(self._trials.team, self._trials.topology_version, position.boundary) or ""
        return [*([self._trials.note(EventKind.UNASKED, why=why)] if why else []), *self._refusals()]

    def ask(self, observation: Observation) -> None:
        """Send the state of the run off, where no question or decision is under way."""
        if self._consultation.open or self._trials.ended or self._reports.alone or not self._trials.team.leads:
            return
        self._consultation.ask(self._packet(observation))

    def nothing_grows(self) -> list[GrowthEvent]:
        """Say at the first boundary that nothing can grow, and at the end that nothing did; and why."""
        if self._trials.position.boundary == 1 and (why := told_text(self._trials.team, self._why_too_dear)):
            return [self._trials.note(EventKind.NOTHING, why=why)]
        quiet = not any(event.kind in (EventKind.GRAFTED, EventKind.NOTHING) for event in self._trials.events)
        if not (self._trials.ended and quiet):
            return []
        return [self._trials.note(EventKind.NOTHING, why=told_text(self._trials.team, self._why_nothing))]

    def _refusals(self) -> list[GrowthEvent]:
        """Write down what was refused of what the bus brought, and tell whoever decided it."""
        refusals, self._consultation.refusals = self._consultation.refusals, []
        self._reports.refused(refusals)
        return [self._trials.note(EventKind.CANCELLED, r.decision, why=r.why, kept=False) for r in refusals]

    def _packet(self, observation: Observation) -> SystemStatePacket:
        position, config = self._trials.position, self._config
        if config.late is Late.WAIT:
            self._shelf.settle(limit_s=config.wait_limit_s)
        host, limit = self._trials.host_params, self._candidates.budget.params
        return SystemStatePacket(
            run_id=self._trials.run_id,
            boundary=position.boundary,
            step=position.step,
            every=config.every,
            steps=config.steps,
            topology_version=self._trials.topology_version,
            lead=config.lead,
            host_params=host,
            params=host + sum(trial.params for trial in position.trials.values()),
            signal=config.signal,
            max_params=None if limit is None else host + limit,
            history=tuple(position.history[-config.history_length :]),
            grafts=tuple(position.grafts),
            slots=self._candidates.slots(observation.health),
            candidates=self._candidates.current(position.trials.values(), observation.scores),
        )

    def _why_too_dear(self) -> str:
        """Name the cheapest candidate where every one of them is over budget."""
        candidates = self._candidates.current(self._trials.position.trials.values(), {})
        over = [c for c in candidates if any(mask.startswith(OVER_BUDGET) for mask in c.masked)]
        if not over or len(over) < len(candidates):
            return ""
        cheapest = min(over, key=lambda c: c.params)
        mask = next(mask for mask in cheapest.masked if mask.startswith(OVER_BUDGET))
        return f"the cheapest graft, {cheapest.blueprint} at {cheapest.slot}, is {mask}; raise budget="

    def _why_nothing(self) -> str:
        shelf = self._shelf
        if shelf.offers and all(shelf.ready(offer) is None for offer in shelf.offers):
            refused = [why for offer in shelf.offers if (why := shelf.refusal(offer)) is not None]
            return refused[0] if refused else 'the run ended before its first kernel was compiled; use late="wait"'
        return self._consultation.last_reason or "the controller asked for nothing"


def _obituary(running: Future[None]) -> str:
    error = None if running.cancelled() else running.exception()
    causes = "; ".join(map(str, _leaves(error))) if error is not None else "they were closed"
    return f"the background services ended, and the run goes on without them: {causes}"


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in nested groups."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
