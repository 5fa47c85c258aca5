"""The default controller: early or at a plateau, spread over the stages, gated and mixing designs first."""

import hashlib

from esper.contracts.adaptation import Action, AdaptationDecision, Candidate, Outcome, Reason, SystemStatePacket
from esper.services.tamiyo.config import PlateauConfig as PlateauConfig
from esper.services.tamiyo.config import Where as Where
from esper.services.tamiyo.experience import AdvisorStatus, Experience
from esper.services.tamiyo.placement import Choice, choose, is_pending, masks, pool, room
from esper.services.tamiyo.timing import Timing, when


class PlateauAdvisor:
    """Implements `esper.ports.Advisor` by rules, each of which says why.

    When: early in a run of known length, or when the held-out loss has flattened and enough of the run remains; never where
    the training loss runs away from the held-out loss. Where: the emptiest stage, front first. What: the best kind that the
    budget has room for. What was culled or rolled back in a run comes back there only when nothing else is left.

    Equal packets after equal outcomes lead to equal decisions, their ids included.

    Args:
        config: Settings.
    """

    def __init__(self, config: PlateauConfig | None = None) -> None:
        self._config = config or PlateauConfig()
        self._experience = Experience()

    async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Choose what to do at this boundary; see `decision`."""
        return self.decision(packet)

    async def learn(self, outcome: Outcome) -> None:
        """Take in what a decision brought; the same decision counts once."""
        self._experience.add(outcome)

    def status(self) -> AdvisorStatus:
        """Return what was learned so far."""
        return self._experience.status()

    def decision(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Choose what to do, without waiting for anything."""
        drawn = self._config.where is Where.RANDOM
        undone = frozenset() if drawn else self._experience.undone(packet.run_id)
        candidates = pool(packet, undone)
        if not candidates:
            return self._none(packet, *_nothing_to_choose(packet))
        timing = when(packet, room=room(candidates, packet), config=self._config)
        if not timing.grow:
            return self._none(packet, timing.why, timing.evidence)
        choosable = candidates if timing.patient else tuple(c for c in candidates if not is_pending(c))
        if not choosable:
            return self._none(packet, *_nothing_to_choose(packet))
        choice = choose(choosable, packet, self._config.where, seed=self._config.seed)
        if is_pending(choice.candidate):
            return self._none(packet, *_wait_for(choice.candidate))
        return self._load(packet, timing, choice)

    def _none(self, packet: SystemStatePacket, why: str, evidence: tuple[Reason, ...]) -> AdaptationDecision:
        return AdaptationDecision(
            action=Action.NONE,
            reason=why,
            evidence=evidence,
            decision_id=self._id(packet),
            run_id=packet.run_id,
            topology_version=packet.topology_version,
            strategy=self._config.strategy,
        )

    def _load(self, packet: SystemStatePacket, timing: Timing, choice: Choice) -> AdaptationDecision:
        chosen = choice.candidate
        return AdaptationDecision(
            action=Action.LOAD_KERNEL,
            reason=f"{timing.why}, {choice.why}",
            evidence=(*timing.evidence, *choice.evidence),
            decision_id=self._id(packet),
            run_id=packet.run_id,
            topology_version=packet.topology_version,
            boundary=packet.boundary + packet.lead,
            target_layer=chosen.slot,
            seed_idx=chosen.seed_idx,
            blueprint=chosen.blueprint,
            kernel_id=chosen.kernel_id,
            strategy=self._config.strategy,
            log_propensity=choice.log_propensity,
        )

    def _id(self, packet: SystemStatePacket) -> str:
        """Name the decision by what it was made for: the same question has one answer, however often it is asked."""
        made_for = (
            packet.run_id, packet.boundary, packet.topology_version, self._config.strategy, self._config.seed,
            self._experience.status().version,
        )  # fmt: skip
        return f"decision-{hashlib.sha256(repr(made_for).encode()).hexdigest()[:12]}"


def _nothing_to_choose(packet: SystemStatePacket) -> tuple[str, tuple[Reason, ...]]:
    count = len(packet.candidates)
    if not count:
        why = "no slot has an eligible blueprint"
        return why, (Reason(text=why, name="candidates", value=0, threshold=1),)
    why = f"none of {count} candidates may be chosen: {masks(packet.candidates)}"
    return why, (Reason(text="candidates that may be chosen", name="choosable", value=0, threshold=1),)


def _wait_for(candidate: Candidate) -> tuple[str, tuple[Reason, ...]]:
    why = f"the kernel of {candidate.blueprint} at {candidate.slot} is being compiled, and there is time to wait for it"
    return why, (Reason(text="kernels that are ready, of one wanted", name="kernels_ready", value=0, threshold=1),)
