"""The plateau controller and its null hypotheses keep the laws of an advisor, and the suite sees those that do not."""

from collections.abc import Awaitable, Callable

import pytest

from esper.contracts.adaptation import Action, AdaptationDecision, Outcome, SystemStatePacket
from esper.services.tamiyo.config import PlateauConfig, Where
from esper.services.tamiyo.plateau import PlateauAdvisor
from esper.testing.advisor_contract import AdvisorContract, NewAdvisor


class TestPlateau(AdvisorContract):
    @pytest.fixture(params=list(Where))
    def new_advisor(self, request: pytest.FixtureRequest) -> NewAdvisor:
        config = PlateauConfig(where=request.param, seed=3)
        return lambda: PlateauAdvisor(config)


class _Faulty(PlateauAdvisor):
    """An advisor that breaks one law."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault
        self._asked = self._learned = 0

    async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        self._asked += 1
        decision = self.decision(packet)
        change: dict[str, object] = {}
        match self._fault:
            case "chooses masked" if masked := [c for c in packet.candidates if c.masked and c.kernel_id]:
                chosen = masked[0]
                change = {"action": Action.LOAD_KERNEL, "target_layer": chosen.slot, "blueprint": chosen.blueprint}
                change |= {"seed_idx": chosen.seed_idx, "kernel_id": chosen.kernel_id}
            case "over budget" if open_ := [c for c in packet.candidates if not c.masked]:
                chosen = max(open_, key=lambda c: c.params)
                change = {"action": Action.LOAD_KERNEL, "target_layer": chosen.slot, "blueprint": chosen.blueprint}
                change |= {"seed_idx": chosen.seed_idx, "kernel_id": chosen.kernel_id}
            case "says nothing":
                change = {"reason": ""}
            case "counts questions":
                change = {"reason": f"question {self._asked}"}
            case "counts outcomes":
                change = {"reason": f"outcome {self._learned}"}
            case "joins too soon":
                change = {"boundary": packet.boundary}
        return decision.model_copy(update=change)

    async def learn(self, outcome: Outcome) -> None:
        self._learned += 1
        await super().learn(outcome)


Law = Callable[[AdvisorContract, NewAdvisor], Awaitable[None]]


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("chooses masked", AdvisorContract.test_it_never_chooses_what_the_packet_masks),
        ("over budget", AdvisorContract.test_it_never_goes_over_the_budget),
        ("says nothing", AdvisorContract.test_every_decision_says_why_in_words_and_numbers),
        ("counts questions", AdvisorContract.test_asking_changes_nothing),
        ("counts outcomes", AdvisorContract.test_an_outcome_counts_once),
        ("joins too soon", AdvisorContract.test_a_decision_is_made_for_its_packet),
    ],
)
async def test_the_suite_sees_a_planted_fault(fault: str, law: Law) -> None:
    with pytest.raises(AssertionError):
        await law(AdvisorContract(), lambda: _Faulty(fault))
