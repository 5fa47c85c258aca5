"""Who decides in a growing run: the default rule and its null hypotheses, or nobody where a hand grafts."""

from benchmarks.growth.runs import Run
from esper.contracts.adaptation import AdaptationDecision, Outcome, SystemStatePacket
from esper.ports import Advisor
from esper.services.tamiyo.config import PlateauConfig, Where
from esper.services.tamiyo.plateau import PlateauAdvisor

NEVER = PlateauConfig(startup_share=0, early_share=0.001, latest_share=0.001, least_remaining_share=1)
"""Nothing is early enough, and nothing has enough of the run left."""


class OneDesign:
    """A rule that is shown one design only, for a number of grafts: what it chooses is the place.

    Args:
        rule: Decides.
        blueprint: Name of the design.
        grafts: How many may join.
    """

    def __init__(self, rule: Advisor, blueprint: str, grafts: int) -> None:
        self._rule, self._blueprint, self._grafts = rule, blueprint, grafts

    async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Let the rule choose among the places of the one design; among none when there are enough grafts."""
        open_still = len(packet.grafts) < self._grafts
        shown = tuple(c for c in packet.candidates if open_still and c.blueprint == self._blueprint)
        return await self._rule.decide(packet.model_copy(update={"candidates": shown}))

    async def learn(self, outcome: Outcome) -> None:
        """Hand on what became of a graft."""
        await self._rule.learn(outcome)


def controller_of(run: Run, blueprint: str) -> "PlateauAdvisor | OneDesign":
    """Return who decides in a run.

    Args:
        run: Names the rule, and how many grafts of one design it may place.
        blueprint: That design.
    """
    if not run.controller:
        return PlateauAdvisor(NEVER)
    rule = PlateauAdvisor(PlateauConfig(where=Where(run.controller), seed=run.seed))
    return OneDesign(rule, blueprint, run.grafts) if run.grafts else rule
