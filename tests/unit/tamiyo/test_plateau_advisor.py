"""The plateau controller decides by rules that say why, over whole runs as for single packets."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.adaptation import Action, Candidate, SlotState, SystemStatePacket, Verdict
from esper.services.tamiyo.config import PlateauConfig, Where
from esper.services.tamiyo.experience import MOST_RUNS, Experience
from esper.services.tamiyo.plateau import PlateauAdvisor
from esper.testing.advisor_contract import outcome_of
from esper.testing.packets import random_packet

MakeCandidate = Callable[..., Candidate]
MakePacket = Callable[..., SystemStatePacket]

packets = st.randoms(use_true_random=False).map(random_packet)


def _run(
    make_candidate: MakeCandidate, make_packet: MakePacket, where: Where, *, boundaries: int, slots: int
) -> list[tuple[int, str, str]]:
    """Return the grafts of a run from scratch that carries out every decision: step, slot, blueprint."""
    advisor = PlateauAdvisor(PlateauConfig(where=where))
    grafts: list[tuple[int, str, str]] = []
    names = [f"s{n}" for n in range(slots)]
    for boundary in range(1, boundaries):
        taken = {slot for _, slot, _ in grafts}
        open_ = [
            make_candidate(name, order=n, stage=n // 2, kind=kind, score=0.1 + 0.1 * n)
            for n, name in enumerate(names)
            for kind in ("plain", "gated_mixing")
            if name not in taken
        ]
        states = [
            SlotState(slot=name, stage=n // 2, order=n, seeds=("blending",) if name in taken else ())
            for n, name in enumerate(names)
        ]
        decision = advisor.decision(
            make_packet(
                open_, boundary=boundary, steps=100 * boundaries, grafts=tuple(step for step, *_ in grafts), slots=states,
                topology_version=len(grafts), losses=[math.exp(-n / 15) for n in range(boundary)],
            )
        )  # fmt: skip
        if decision.action is Action.LOAD_KERNEL:
            assert decision.boundary == boundary + 1
            grafts.append((100 * (boundary + 1), str(decision.target_layer), str(decision.blueprint)))
    return grafts


@pytest.mark.parametrize("boundaries", [20, 30, 40])
@pytest.mark.parametrize("slots", [2, 4])
def test_in_a_run_from_scratch_every_slot_is_grown_within_the_first_quarter(
    make_candidate: MakeCandidate, make_packet: MakePacket, boundaries: int, slots: int
) -> None:
    grafts = _run(make_candidate, make_packet, Where.BALANCED, boundaries=boundaries, slots=slots)
    assert len(grafts) == slots
    assert all(0.05 <= step / (100 * boundaries) <= 0.25 for step, _, _ in grafts)
    assert {blueprint for _, _, blueprint in grafts} == {"gated_mixing_design"}


def test_stages_take_turns_the_more_constrained_first_and_the_front_first_in_each(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    grafts = _run(make_candidate, make_packet, Where.BALANCED, boundaries=40, slots=4)
    assert [slot for _, slot, _ in grafts] == ["s2", "s0", "s3", "s1"]


def test_the_null_hypotheses_grow_at_the_same_steps_and_differ_in_where_and_what_alone(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    runs = {where: _run(make_candidate, make_packet, where, boundaries=40, slots=4) for where in Where}
    assert len({tuple(step for step, *_ in grafts) for grafts in runs.values()}) == 1
    slots = {where: [slot for _, slot, _ in grafts] for where, grafts in runs.items()}
    assert slots[Where.FRONT_FIRST] == ["s0", "s1", "s2", "s3"]
    assert slots[Where.INVERSE] == ["s0", "s1", "s2", "s3"]
    assert {blueprint for _, _, blueprint in runs[Where.RANDOM]} == {"plain_design", "gated_mixing_design"}


def test_a_decision_says_what_and_why(make_candidate: MakeCandidate, make_packet: MakePacket) -> None:
    packet = make_packet(
        [make_candidate("layer3", score=0.41)], boundary=20, losses=[0.5] * 9, steps=None, topology_version=3, lead=2
    )
    decision = PlateauAdvisor().decision(packet)
    assert decision.action is Action.LOAD_KERNEL
    assert decision.reason == "plateau over 700 steps, bottleneck score 0.41"
    assert (decision.target_layer, decision.blueprint, decision.kernel_id) == (
        "layer3", "gated_mixing_design", "k:layer3gated_mixing",
    )  # fmt: skip
    assert (decision.run_id, decision.topology_version, decision.boundary) == ("run-1", 3, 22)
    assert (decision.strategy, decision.log_propensity) == ("plateau", 0.0)
    assert [reason.name for reason in decision.evidence] == ["held_out_fall", "stage_share", "bottleneck_score"]


def test_while_it_is_early_a_better_kernel_is_waited_for_and_later_it_is_not(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    better = make_candidate(kernel_id=None, masked=("kernel not ready",))
    worse = make_candidate(kind="plain")
    early, late = (make_packet([better, worse], boundary=boundary) for boundary in (2, 12))
    waiting = PlateauAdvisor().decision(early)
    assert waiting.action is Action.NONE
    assert waiting.reason.startswith("the kernel of gated_mixing_design at a is being compiled")
    assert PlateauAdvisor().decision(late).blueprint == "plain_design"


def test_when_every_candidate_is_masked_the_reason_counts_the_masks(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    taken = [make_candidate(name, masked=("no free seed: blending",)) for name in "ab"]
    pending = make_candidate("c", kernel_id=None, masked=("kernel not ready",))
    decision = PlateauAdvisor().decision(make_packet(taken, boundary=2))
    assert decision.reason == "none of 2 candidates may be chosen: no free seed (2)"
    decision = PlateauAdvisor().decision(make_packet([*taken, pending], boundary=12))
    assert decision.reason == "none of 3 candidates may be chosen: kernel not ready (1), no free seed (2)"
    assert PlateauAdvisor().decision(make_packet([])).reason == "no slot has an eligible blueprint"


async def test_what_was_culled_is_not_tried_again_before_others_in_its_run(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    culled, other = make_candidate("a"), make_candidate("b", order=1)
    advisor = PlateauAdvisor()
    await advisor.learn(outcome_of(culled, "run-1", Verdict.CULLED))
    here, elsewhere = (make_packet([culled, other], boundary=2, run_id=run) for run in ("run-1", "run-2"))
    assert advisor.decision(here).target_layer == "b"
    assert advisor.decision(elsewhere).target_layer == "a"
    assert advisor.decision(make_packet([culled], boundary=2)).target_layer == "a"


async def test_the_status_tells_what_was_learned_once_per_decision(make_candidate: MakeCandidate) -> None:
    advisor = PlateauAdvisor()
    kept, culled = make_candidate("a"), make_candidate("b", kind="plain")
    for _ in range(3):
        await advisor.learn(outcome_of(kept, "run-1", Verdict.KEPT))
        await advisor.learn(outcome_of(culled, "run-1", Verdict.CULLED))
    status = advisor.status()
    assert (status.version, status.kept, status.culled, status.measured) == (2, 1, 1, 2)
    assert status.gain_sum == pytest.approx(0.0)
    assert dict(status.gains) == {"gated_mixing_design": pytest.approx(0.1), "plain_design": pytest.approx(-0.1)}


def test_runs_are_forgotten_oldest_first(make_candidate: MakeCandidate) -> None:
    experience = Experience()
    for n in range(MOST_RUNS + 1):
        assert experience.add(outcome_of(make_candidate("a"), f"run-{n}", Verdict.CULLED))
    assert experience.undone("run-0") == frozenset()
    assert experience.undone(f"run-{MOST_RUNS}") == {("a", "gated_mixing_design")}


def test_a_graft_that_was_kept_and_later_rolled_back_counts_as_both(make_candidate: MakeCandidate) -> None:
    experience = Experience()
    for verdict in (Verdict.KEPT, Verdict.ROLLED_BACK, Verdict.ROLLED_BACK):
        experience.add(outcome_of(make_candidate("a"), "run-1", verdict))
    assert dict(experience.status().verdicts) == {Verdict.KEPT: 1, Verdict.ROLLED_BACK: 1}


@given(packets, st.sampled_from(Where), st.integers(0, 3))
def test_equal_packets_lead_to_equal_decisions_ids_included(packet: SystemStatePacket, where: Where, seed: int) -> None:
    config = PlateauConfig(where=where, seed=seed)
    assert PlateauAdvisor(config).decision(packet) == PlateauAdvisor(config).decision(packet.model_copy(deep=True))


@given(packets, packets)
def test_different_questions_get_different_ids(one: SystemStatePacket, other: SystemStatePacket) -> None:
    asked = [(p.run_id, p.boundary, p.topology_version) for p in (one, other)]
    ids = [PlateauAdvisor().decision(p).decision_id for p in (one, other)]
    assert (asked[0] == asked[1]) == (ids[0] == ids[1])


@given(packets, st.sampled_from(Where))
def test_a_decision_waits_for_nothing(packet: SystemStatePacket, where: Where) -> None:
    asked = PlateauAdvisor(PlateauConfig(where=where)).decide(packet)
    with pytest.raises(StopIteration):
        asked.send(None)


@given(packets, st.sampled_from(Where))
def test_a_random_packet_gets_a_lawful_decision(packet: SystemStatePacket, where: Where) -> None:
    decision = PlateauAdvisor(PlateauConfig(where=where)).decision(packet)
    assert decision.reason
    assert decision.evidence
    if decision.action is Action.LOAD_KERNEL:
        named = (decision.target_layer, decision.blueprint, decision.kernel_id)
        (chosen,) = [c for c in packet.candidates if (c.slot, c.blueprint, c.kernel_id) == named]
        assert not chosen.masked
        assert packet.max_params is None or packet.params + chosen.params <= packet.max_params
        assert math.isfinite(packet.history[-1].validation)
        if packet.steps is not None and not decision.reason.startswith("plateau"):
            assert (packet.step + packet.lead * packet.every) / packet.steps <= 0.4


@given(packets)
def test_the_order_of_candidates_and_slots_does_not_matter(packet: SystemStatePacket) -> None:
    shuffled = packet.model_copy(
        update={
            "candidates": tuple(random.Random(1).sample(packet.candidates, len(packet.candidates))),
            "slots": tuple(reversed(packet.slots)),
        }
    )
    for where in Where:
        config = PlateauConfig(where=where)
        one, other = (PlateauAdvisor(config).decision(p) for p in (packet, shuffled))
        assert one == other
