"""Decisions come into a run through two doors; each passes once, and none that is stale."""

import asyncio

import pytest

from esper.contracts.adaptation import Action, AdaptationDecision, Verdict
from esper.contracts.ids import MessageId
from esper.errors import Unavailable
from esper.ports import Delivery
from esper.services.tolaria.decisions import MOST_WAITING, REMEMBERED, Decisions, Door
from esper.services.tolaria.distributed.words import decision_from_bytes, decision_to_bytes

RUN = "run-1"


def decided(
    name: str, *, run_id: str = RUN, topology: int | None = 0, action: str = "load_kernel"
) -> AdaptationDecision:
    return AdaptationDecision(
        action=Action(action), decision_id=name, run_id=run_id, topology_version=topology, target_layer="fc",
        kernel_id="sha256:0",
    )  # fmt: skip


def heard(decisions: Decisions, *brought: AdaptationDecision, run_id: str | None = None) -> None:
    async def hear() -> None:
        for decision in brought:
            await decisions.hear(
                Delivery(
                    id=MessageId("m"), stream="control.adaptation.decision", body=decision, run_id=run_id,
                    redelivered=False,
                )
            )  # fmt: skip

    asyncio.run(hear())


def taken(decisions: Decisions, topology: int = 0) -> list[str]:
    found = []
    while (decision := decisions.next(topology)) is not None:
        found.append(decision.decision_id)
    return found


@pytest.fixture
def decisions() -> Decisions:
    return Decisions(RUN, lambda decision_id: decision_id == "settled")


def test_each_id_passes_once_and_in_order(decisions: Decisions) -> None:
    heard(decisions, decided("a"), decided("b"), decided("a"))
    assert taken(decisions) == ["a", "b"]
    heard(decisions, decided("a"))
    assert taken(decisions) == []
    assert decisions.doubled == 2


def test_what_is_for_another_run_or_for_none_or_asks_for_nothing_is_passed_over(decisions: Decisions) -> None:
    heard(decisions, decided("a", run_id="run-2"), decided("b", run_id=""), decided("c", action="none"))
    assert taken(decisions) == []
    heard(decisions, decided("d", run_id=""), run_id=RUN)
    assert taken(decisions) == ["d"]
    assert (decisions.doubled, decisions.refused, decisions.refusals()) == (0, 0, [])


@pytest.mark.parametrize(("made_for", "why"), [(0, "made for 0"), (2, "made for 2"), (None, "does not say")])
def test_what_was_made_for_another_topology_is_refused_once(
    decisions: Decisions, made_for: int | None, why: str
) -> None:
    heard(decisions, decided("a", topology=made_for), decided("b", topology=1))
    assert taken(decisions, topology=1) == ["b"]
    (refusal,) = decisions.refusals()
    assert why in refusal.why
    assert "topology is 1 now" in refusal.why
    outcome = refusal.outcome(RUN)
    assert (outcome.decision_id, outcome.verdict, outcome.gain) == ("a", Verdict.CANCELLED, None)
    assert decisions.refused == 1
    assert decisions.refusals() == []


def test_an_answer_shuts_the_bus_for_its_id_and_the_bus_shuts_the_answer(decisions: Decisions) -> None:
    assert decisions.claim(decided("a"), Door.ANSWER)
    heard(decisions, decided("a"), decided("b"))
    assert taken(decisions) == ["b"]
    assert not decisions.claim(decided("b"), Door.ANSWER)
    assert [decisions.came_over_the_bus(decided(name)) for name in "ab"] == [False, True]


def test_a_controller_may_answer_two_equal_questions_equally(decisions: Decisions) -> None:
    assert decisions.claim(decided("a"), Door.ANSWER)
    assert decisions.claim(decided("a"), Door.ANSWER)
    assert decisions.doubled == 0


def test_what_the_event_log_knows_is_not_applied_again(decisions: Decisions) -> None:
    heard(decisions, decided("settled"), decided("settled", topology=5))
    assert taken(decisions) == []
    assert (decisions.doubled, decisions.refused) == (2, 0)


def test_a_run_that_is_resumed_has_what_waited_once(decisions: Decisions) -> None:
    heard(decisions, decided("b"), decided("c"))
    decisions.go_on([decided("a"), decided("b")])
    heard(decisions, decided("a"))
    assert [decision.decision_id for decision in decisions.waiting()] == ["a", "b", "c"]


def test_more_than_can_wait_is_left_to_the_bus_and_memory_is_bounded(decisions: Decisions) -> None:
    heard(decisions, *(decided(f"d{n}") for n in range(MOST_WAITING)))
    with pytest.raises(Unavailable, match="ESP-4110"):
        heard(decisions, decided("late"))
    assert len(taken(decisions)) == MOST_WAITING
    heard(decisions, decided("late"))
    assert taken(decisions) == ["late"]
    for n in range(2 * REMEMBERED):
        decisions.claim(decided(f"x{n}"), Door.ANSWER)
    assert len(decisions._claimed) == REMEMBERED


def test_refusals_are_told_to_every_process() -> None:
    told = decision_to_bytes(decided("a"), 7, None, [(decided("b"), "stale")])
    assert decision_from_bytes(told) == (decided("a"), 7, None, [(decided("b"), "stale")])
