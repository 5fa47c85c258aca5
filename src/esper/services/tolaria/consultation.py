"""Asking the controller: the packet goes out at one boundary, the answer is looked for at the next."""

import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from esper.contracts.adaptation import Action, AdaptationDecision, Outcome, SystemStatePacket
from esper.contracts.topics import DECISIONS
from esper.errors import ConfigError, Unavailable
from esper.services.tolaria.config import GrowthConfig, Late
from esper.services.tolaria.decisions import Decisions, Door, Refusal
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.distributed.words import decision_from_bytes, decision_to_bytes
from esper.services.tolaria.platform import Platform


class Decides(Protocol):
    """What a user's own controller needs: ``decide(packet)``, plain or async."""

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | Awaitable[AdaptationDecision]:
        """Choose what to do at this boundary."""
        ...


class OwnAdvisor:
    """A user's object with ``decide(packet)``, as an Advisor.

    Raises:
        ConfigError: If it does not decide.
    """

    def __init__(self, controller: Decides) -> None:
        if not callable(getattr(controller, "decide", None)):
            raise ConfigError(
                f"controller is a {type(controller).__name__}",
                why="it has no decide(packet)",
                todo='use "plateau", or an object with decide(packet), plain or async',
                code="ESP-2132",
            )
        self._controller = controller

    async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Ask the user's object."""
        answer = self._controller.decide(packet)
        decision = await answer if inspect.isawaitable(answer) else answer
        if not isinstance(decision, AdaptationDecision):
            raise ConfigError(
                f"the controller returned {type(decision).__name__}",
                why="decide(packet) must return an esper.contracts.adaptation.AdaptationDecision",
                code="ESP-2130",
            )
        return decision

    async def learn(self, outcome: Outcome) -> None:
        """Tell the user's object, where it listens."""
        listen: Callable[[Outcome], object] | None = getattr(self._controller, "learn", None)
        if listen is not None and inspect.isawaitable(answer := listen(outcome)):
            await answer


@dataclass
class Scheduled:
    """A decision that waits for its boundary."""

    decision: AdaptationDecision
    boundary: int


class Consultation:
    """One question at a time, never waited for unless the user asked for it; and one decision at a time, whoever took it.

    Args:
        platform: The controller, where its decisions are announced, and the way to both.
        config: Settings of the run.
        decisions: The doors that decisions come through.

    Attributes:
        scheduled: A decision that waits for its boundary, or None.
        refusals: What was refused at this boundary.
        unasked_count: How often the controller could not be asked.
        last_reason: What the controller said last.
    """

    def __init__(self, platform: Platform, config: GrowthConfig, decisions: Decisions) -> None:
        self.scheduled: Scheduled | None = None
        self.refusals: list[Refusal] = []
        self.unasked_count = 0
        self.last_reason = ""
        self._next = 0
        self._failure: str | None = None
        self._platform, self._bridge, self._config, self._decisions = platform, platform.bridge, config, decisions
        self._answer: Future[AdaptationDecision] | None = None

    @property
    def open(self) -> bool:
        """Whether a question or a scheduled decision is under way."""
        return self._answer is not None or self.scheduled is not None

    def ask(self, packet: SystemStatePacket) -> None:
        """Send a packet off."""
        self._next = packet.boundary + packet.lead
        self._answer = self._bridge.submit(self._advised(packet))

    def collect(self, topology_version: int, boundary: int) -> str | None:
        """Take in the answer, where it has come, and what the bus brought; a decision for another topology is void.

        Returns:
            Why the controller could not be asked, or None where it could.

        Raises:
            Exception: Whatever a user's own controller raised; a mistake in it must be seen.
        """
        if self._answer is not None and (self._config.late is Late.WAIT or self._answer.done()):
            self.settle()
        failure, self._failure = self._failure, None
        if self.scheduled is not None and self.scheduled.decision.topology_version not in (None, topology_version):
            self.scheduled = None
        self._take_from_the_bus(topology_version, boundary)
        return failure or self._decisions.deafness()

    def _take_from_the_bus(self, topology_version: int, boundary: int) -> None:
        """Schedule the next decision that the bus brought, where none is; one without a boundary joins like the answer would."""
        if self.scheduled is None and (decision := self._decisions.next(topology_version)) is not None:
            joins = boundary + self._config.lead if self._answer is None else self._next
            self.scheduled = Scheduled(decision, joins if decision.boundary is None else decision.boundary)
        self.refusals = self._decisions.refusals()

    def heard(self, team: Team, topology_version: int, boundary: int) -> str | None:
        """Take in what has come, at the leader; every process hears of it.

        Returns:
            Why the controller could not be asked, or None where it could.
        """
        if team.size == 1:
            return self.collect(topology_version, boundary)

        def said() -> bytes:
            why = self.collect(topology_version, boundary)
            now = self.scheduled
            refused = [(refusal.decision, refusal.why) for refusal in self.refusals]
            return decision_to_bytes(now.decision if now else None, now.boundary if now else 0, why, refused)

        decision, joins, why, refused = decision_from_bytes(team.told(said))
        self.scheduled = None if decision is None else Scheduled(decision, joins)
        self.refusals = [Refusal(*one) for one in refused]
        return why

    def settle(self) -> None:
        """Wait for the answer, because a run is saved or the user chose ``late="wait"``; ``collect`` tells what came of it."""
        if self._answer is None:
            return
        if not self._answer.done():
            self._bridge.wait(_finished(self._answer), limit_s=self._config.wait_limit_s)
        self._take()

    def void(self) -> None:
        """Drop what was asked or decided before the model changed under it; what the bus brought is refused in its turn."""
        if self.scheduled is not None and self._decisions.came_over_the_bus(self.scheduled.decision):
            self._decisions.hold(self.scheduled.decision, first=True)
        self._drop()

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.cancel()
        self._answer, self.scheduled = None, None

    def due(self, boundary: int) -> AdaptationDecision | None:
        """Return the decision whose boundary has come; it stays scheduled until ``done``."""
        if self.scheduled is None or boundary < self.scheduled.boundary:
            return None
        return self.scheduled.decision

    @property
    def known(self) -> Scheduled | None:
        """The decision that waits for its boundary, also in an answer that has come but was not taken in yet."""
        answer = self._answer
        if self.scheduled is not None:
            return self.scheduled
        if answer is None or not answer.done() or answer.cancelled() or answer.exception() is not None:
            return None
        return self._scheduled_by(answer.result())

    def due_next(self, boundary: int) -> bool:
        """Tell whether the decision for a boundary is known already."""
        known = self.known
        return known is not None and boundary >= known.boundary

    def lateness(self, boundary: int) -> int:
        """Return by how many boundaries the scheduled decision is late."""
        return 0 if self.scheduled is None else boundary - self.scheduled.boundary

    def done(self) -> None:
        """Take the scheduled decision as carried out."""
        self.scheduled = None

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduled decision, and what the controller said last; ``settle`` comes first."""
        waiting = [decision.model_dump(mode="json") for decision in self._decisions.waiting()]
        heard = {"reason": self.last_reason, "failure": self._failure, "waiting": waiting}
        if self.scheduled is None:
            return heard
        decision = self.scheduled.decision.model_dump(mode="json")
        return {**heard, "decision": decision, "boundary": self.scheduled.boundary}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._drop()
        self.last_reason, self._failure = state.get("reason", ""), state.get("failure")
        self._decisions.go_on([AdaptationDecision(**decision) for decision in state.get("waiting", ())])
        if "decision" in state:
            self.scheduled = Scheduled(AdaptationDecision(**state["decision"]), state["boundary"])

    async def _advised(self, packet: SystemStatePacket) -> AdaptationDecision:
        decision = await self._platform.advisor.decide(packet)
        self._decisions.claim(decision, Door.ANSWER)
        if not self._platform.announced:
            await self._platform.bus.publish(DECISIONS.stream, decision, run_id=packet.run_id)
        return decision

    def _take(self) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.cancelled():
            return
        try:
            decision = answer.result()
        except Unavailable as error:
            self.unasked_count += 1
            self._failure = str(error)
            return
        self.last_reason = decision.reason
        scheduled = self._scheduled_by(decision)
        if scheduled is None or self._decisions.came_over_the_bus(decision):
            return
        if self.scheduled is not None:
            self._decisions.hold(decision)
            return
        self.scheduled = scheduled

    def _scheduled_by(self, decision: AdaptationDecision) -> Scheduled | None:
        if decision.action is not Action.LOAD_KERNEL:
            return None
        return Scheduled(decision, self._next if decision.boundary is None else decision.boundary)


def _finished(answer: Future[AdaptationDecision]) -> Future[None]:
    finished: Future[None] = Future()
    answer.add_done_callback(lambda _: finished.set_result(None))
    return finished
