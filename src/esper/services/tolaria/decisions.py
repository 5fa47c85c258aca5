"""The doors through which decisions come into a run: the controller's own answer, and the bus. Each decision passes once."""

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum

from esper.contracts.adaptation import Action, AdaptationDecision, Outcome, Verdict
from esper.contracts.groups import run_group
from esper.contracts.topics import DECISIONS
from esper.errors import Unavailable
from esper.ports import Delivery, MessageBus
from esper.runtime.background import Bridge

REMEMBERED = 4096
"""Ids that are remembered; a run takes one decision at a boundary, and its event log knows those that were applied."""

MOST_WAITING = 64
"""Decisions that wait for a boundary. Each that is applied makes the others stale, so that more are no use to anybody."""


class Door(StrEnum):
    """How a decision came."""

    ANSWER = "answer"
    BUS = "bus"


@dataclass(frozen=True)
class Refusal:
    """A decision that came over the bus and is not carried out.

    Attributes:
        decision: The decision.
        why: The reason.
    """

    decision: AdaptationDecision
    why: str

    def outcome(self, run_id: str) -> Outcome:
        """Return what whoever took the decision is told."""
        decision = self.decision
        return Outcome(
            decision_id=decision.decision_id, run_id=run_id, slot=decision.target_layer or "",
            seed_idx=decision.seed_idx, blueprint=decision.blueprint or "", kernel_id=decision.kernel_id or "",
            verdict=Verdict.CANCELLED, gain=None, gain_error=None, params=0, steps=0,
        )  # fmt: skip


class Decisions:
    """Takes decisions in at both doors, and hands them on one at a time.

    Whichever door brings an id first claims it, on the background loop, where both stand; the other one is then shut for it.
    The training thread takes decisions out at boundaries.

    Args:
        run_id: The run; decisions for another one are passed over.
        settled: Tells by its id whether something became of a decision already, also before the run was resumed.

    Attributes:
        doubled: How often an id came again.
        refused: How many decisions of the bus were refused.
    """

    def __init__(self, run_id: str, settled: Callable[[str], bool]) -> None:
        self.doubled = 0
        self.refused = 0
        self._run_id, self._settled = run_id, settled
        self._listening: Future[None] | None = None
        self._claimed: OrderedDict[str, Door] = OrderedDict()
        self._waiting: deque[AdaptationDecision] = deque()
        self._refusals: list[Refusal] = []

    def listen(self, bridge: Bridge, bus: MessageBus) -> None:
        """Hear decisions for this run until the bus is closed."""
        hearing = bus.subscribe(DECISIONS.stream, run_group(self._run_id), self.hear, start_from="0")
        self._listening = bridge.submit(hearing)

    def deafness(self) -> str | None:
        """Return why the bus cannot be heard any more, once; None where it can, or nobody listens."""
        if self._listening is None or not self._listening.done():
            return None
        error, self._listening = self._listening.exception(), None
        return f"decisions on the bus are not heard any more: {error or 'it was closed'}"

    async def hear(self, delivery: Delivery) -> None:
        """Take in what the bus brings, where it is for this run and asks for a change.

        Raises:
            Unavailable: If too many decisions wait for a boundary; the bus brings it again, and buries it in the end.
        """
        decision = delivery.body
        if not isinstance(decision, AdaptationDecision) or self._run_id != (decision.run_id or delivery.run_id):
            return
        if decision.action is not Action.LOAD_KERNEL:
            return
        if len(self._waiting) >= MOST_WAITING:
            raise Unavailable(
                "the run takes no more decisions now", why=f"{MOST_WAITING} wait for its next boundary", code="ESP-4110"
            )
        if self.claim(decision, Door.BUS):
            self._waiting.append(decision)

    def claim(self, decision: AdaptationDecision, door: Door) -> bool:
        """Remember the door that a decision came through first, and tell whether it may pass at this one.

        The bus brings each id once. A controller may give one answer to two questions, and does where they are equal.
        """
        known = decision.decision_id in self._claimed
        first = self._claimed.setdefault(decision.decision_id, door)
        if len(self._claimed) > REMEMBERED:
            self._claimed.popitem(last=False)
        passes = not known or (first is door is Door.ANSWER)
        self.doubled += not passes
        return passes

    def came_over_the_bus(self, decision: AdaptationDecision) -> bool:
        """Tell whether the bus brought a decision first."""
        return self._claimed.get(decision.decision_id) is Door.BUS

    def hold(self, decision: AdaptationDecision, *, first: bool = False) -> None:
        """Let a decision wait for its turn."""
        (self._waiting.appendleft if first else self._waiting.append)(decision)

    def next(self, topology_version: int) -> AdaptationDecision | None:
        """Return the next decision that holds for the model as it is, or None; what was decided for another one is refused."""
        while self._waiting:
            decision = self._waiting.popleft()
            if self._settled(decision.decision_id):
                self.doubled += 1
            elif decision.topology_version == topology_version:
                return decision
            else:
                self._refuse(decision, topology_version)
        return None

    def refusals(self) -> list[Refusal]:
        """Return what was refused since this was asked last."""
        refusals, self._refusals = self._refusals, []
        return refusals

    def waiting(self) -> list[AdaptationDecision]:
        """Return what waits, in order."""
        return list(self._waiting)

    def go_on(self, waiting: list[AdaptationDecision]) -> None:
        """Let what waited in a run that is resumed wait here; what came here since waits behind it."""
        for decision in waiting:
            self._claimed.setdefault(decision.decision_id, Door.BUS)
        known = {decision.decision_id for decision in waiting}
        self._waiting = deque([*waiting, *(d for d in self._waiting if d.decision_id not in known)])

    def _refuse(self, decision: AdaptationDecision, topology_version: int) -> None:
        made_for = decision.topology_version
        made = "it does not say for which topology it was made" if made_for is None else f"it was made for {made_for}"
        self.refused += 1
        self._refusals.append(Refusal(decision, f"stale: {made}, and the model's topology is {topology_version} now"))
