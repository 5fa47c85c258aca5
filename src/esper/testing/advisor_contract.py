"""What every advisor must do, as a suite that any implementation can run.

```python
class TestMyAdvisor(AdvisorContract):
    @pytest.fixture
    def new_advisor(self):
        return MyAdvisor
```

``new_advisor`` makes an advisor that has learned nothing; two of them, told the same, decide the same. Decisions are compared
without their ids, which may be drawn.
"""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from esper.contracts.adaptation import Action, AdaptationDecision, Candidate, Outcome, SystemStatePacket, Verdict
from esper.ports import Advisor
from esper.testing.packets import random_packet

NewAdvisor: TypeAlias = Callable[[], Advisor]

PACKETS = 150


def packets(seed: int, count: int = PACKETS) -> list[SystemStatePacket]:
    """Return packets of many kinds, the same for the same seed."""
    draw = random.Random(seed)
    return [random_packet(draw) for _ in range(count)]


def nameless(decision: AdaptationDecision) -> AdaptationDecision:
    """Return a decision without its id."""
    return decision.model_copy(update={"decision_id": ""})


async def answers(advisor: Advisor, asked: Sequence[SystemStatePacket]) -> list[AdaptationDecision]:
    """Return what an advisor decides, packet by packet."""
    return [nameless(await advisor.decide(packet)) for packet in asked]


def outcome_of(candidate: Candidate, run_id: str, verdict: Verdict) -> Outcome:
    """Return what became of a graft of a candidate."""
    return Outcome(
        decision_id=f"decision-{candidate.slot}-{candidate.blueprint}",
        run_id=run_id,
        slot=candidate.slot,
        seed_idx=candidate.seed_idx,
        blueprint=candidate.blueprint,
        kernel_id=candidate.kernel_id or "",
        verdict=verdict,
        gain=0.1 if verdict is Verdict.KEPT else -0.1,
        gain_error=0.05,
        params=candidate.params,
        steps=500,
    )


def outcomes(seed: int) -> list[Outcome]:
    """Return outcomes of grafts in the runs of ``packets(seed)``."""
    return [
        outcome_of(packet.candidates[0], packet.run_id, verdict)
        for packet, verdict in zip(packets(seed, 40), list(Verdict) * 10, strict=False)
        if packet.candidates
    ]


class AdvisorContract:
    """The laws of `esper.ports.Advisor`, one test each."""

    async def test_equal_packets_lead_to_equal_decisions(self, new_advisor: NewAdvisor) -> None:
        asked = packets(1)
        copies = [SystemStatePacket.model_validate_json(packet.model_dump_json()) for packet in _finite(asked)]
        assert await answers(new_advisor(), _finite(asked)) == await answers(new_advisor(), copies)

    async def test_asking_changes_nothing(self, new_advisor: NewAdvisor) -> None:
        asked, advisor = packets(2, 60), new_advisor()
        first = await answers(advisor, asked)
        await answers(advisor, packets(3, 60))
        assert list(reversed(await answers(advisor, list(reversed(asked))))) == first

    async def test_questions_at_once_are_answered_as_one_by_one(self, new_advisor: NewAdvisor) -> None:
        asked, advisor = packets(4, 60), new_advisor()
        at_once = await asyncio.gather(*(advisor.decide(packet) for packet in asked))
        assert list(map(nameless, at_once)) == await answers(new_advisor(), asked)

    async def test_it_never_chooses_what_the_packet_masks(self, new_advisor: NewAdvisor) -> None:
        for packet, chosen in await _loaded(new_advisor(), packets(5)):
            assert not chosen.masked, f"chose {chosen} of {packet}"

    async def test_it_never_goes_over_the_budget(self, new_advisor: NewAdvisor) -> None:
        for packet, chosen in await _loaded(new_advisor(), packets(6)):
            assert packet.max_params is None or packet.params + chosen.params <= packet.max_params

    async def test_a_decision_is_made_for_its_packet(self, new_advisor: NewAdvisor) -> None:
        asked = packets(7)
        for packet, decision in zip(asked, await answers(new_advisor(), asked), strict=True):
            assert decision.run_id == packet.run_id
            assert decision.topology_version in (None, packet.topology_version)
            assert decision.boundary is None or decision.boundary >= packet.boundary + packet.lead
            assert decision.asked

    async def test_every_decision_says_why_in_words_and_numbers(self, new_advisor: NewAdvisor) -> None:
        for decision in await answers(new_advisor(), packets(8)):
            assert decision.reason
            assert "\n" not in decision.reason
            assert decision.evidence
            assert all(math.isfinite(reason.value) for reason in decision.evidence)
            assert decision.strategy
            assert decision.log_propensity <= 0.0

    async def test_an_outcome_counts_once(self, new_advisor: NewAdvisor) -> None:
        once, twice = new_advisor(), new_advisor()
        for outcome in outcomes(9):
            await once.learn(outcome)
            await twice.learn(outcome)
        for outcome in outcomes(9):
            await twice.learn(outcome)
        assert await answers(once, packets(9)) == await answers(twice, packets(9))

    async def test_what_was_learned_never_unmasks_anything(self, new_advisor: NewAdvisor) -> None:
        advisor = new_advisor()
        for outcome in outcomes(10):
            await advisor.learn(outcome)
        for _, chosen in await _loaded(advisor, packets(10)):
            assert not chosen.masked

    async def test_it_can_do_both_something_and_nothing(self, new_advisor: NewAdvisor) -> None:
        actions = {decision.action for decision in await answers(new_advisor(), packets(11))}
        assert actions == {Action.NONE, Action.LOAD_KERNEL}


def _finite(asked: Sequence[SystemStatePacket]) -> list[SystemStatePacket]:
    """Leave out packets that JSON cannot carry."""
    return [packet for packet in asked if all(math.isfinite(point.validation) for point in packet.history)]


async def _loaded(advisor: Advisor, asked: Sequence[SystemStatePacket]) -> list[tuple[SystemStatePacket, Candidate]]:
    """Return the packets at which the advisor grows, each with the candidate that it chose."""
    loaded = []
    for packet in asked:
        decision = await advisor.decide(packet)
        if decision.action is Action.LOAD_KERNEL:
            named = (decision.target_layer, decision.seed_idx, decision.blueprint, decision.kernel_id)
            (chosen,) = [c for c in packet.candidates if (c.slot, c.seed_idx, c.blueprint, c.kernel_id) == named]
            loaded.append((packet, chosen))
    assert loaded, "it grew at none of these packets, so that nothing was checked"
    return loaded
