"""Growth is spread over the stages, front first within one, with gated and mixing designs first."""

import math
from collections import Counter
from collections.abc import Callable

import pytest

from esper.contracts.adaptation import Candidate, SlotState, SystemStatePacket
from esper.services.tamiyo.config import Where
from esper.services.tamiyo.placement import Choice, best_design, choose, masks, pool, room, stage_shares

MakeCandidate = Callable[..., Candidate]
MakePacket = Callable[..., SystemStatePacket]


def _choose(packet: SystemStatePacket, where: Where = Where.BALANCED, *, seed: int = 0) -> Choice:
    return choose(pool(packet, frozenset()), packet, where, seed=seed)


def _slots(*states: tuple[int, tuple[str, ...]]) -> list[SlotState]:
    names = "abcdef"
    return [SlotState(slot=names[n], stage=stage, order=n, seeds=seeds) for n, (stage, seeds) in enumerate(states)]


def test_the_best_kind_comes_first_and_among_equals_the_cheapest(make_candidate: MakeCandidate) -> None:
    kinds = ["plain", "unheard_of", "gated", "mixing", "gated_mixing", "widening"]
    ranked = []
    left = [make_candidate(kind=kind) for kind in kinds]
    while left:
        ranked.append(best_design(left).kind)
        left = [c for c in left if c.kind != ranked[-1]]
    assert ranked == ["widening", "gated_mixing", "gated", "mixing", "plain", "unheard_of"]
    cheap, dear = make_candidate(params=10, blueprint="z"), make_candidate(params=20, blueprint="a")
    assert best_design([dear, cheap]) is cheap


def test_the_emptiest_stage_comes_first(make_candidate: MakeCandidate, make_packet: MakePacket) -> None:
    slots = _slots((0, ("fossilized",)), (0, ()), (1, ("blending",)), (1, ()), (1, ()), (2, ("holding",)))
    open_ = [
        make_candidate("b", order=1, stage=0),
        make_candidate("d", order=3, stage=1),
        make_candidate("e", order=4, stage=1),
    ]
    packet = make_packet(open_, slots=slots)
    assert stage_shares(packet) == {0: 0.5, 1: pytest.approx(1 / 3), 2: 1.0}
    assert _choose(packet).candidate.slot == "d"


def test_seeds_that_are_not_part_of_the_model_do_not_fill_a_stage(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    slots = _slots((0, ("embargoed",)), (0, ()), (1, ("evaluating",)), (1, ()))
    packet = make_packet([make_candidate("b", order=1, stage=0), make_candidate("d", order=3, stage=1)], slots=slots)
    assert stage_shares(packet) == {0: 0.0, 1: 0.5}
    assert _choose(packet).candidate.slot == "b"


def test_within_a_stage_the_front_comes_first_whatever_the_score(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    packet = make_packet([make_candidate("b", order=2, score=0.9), make_candidate("a", order=1, score=0.1)])
    assert _choose(packet).candidate.slot == "a"


def test_between_equally_empty_stages_the_bottleneck_score_decides(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    packet = make_packet(
        [make_candidate("a", order=0, stage=0, score=0.1), make_candidate("b", order=1, stage=1, score=0.41)]
    )
    choice = _choose(packet)
    assert choice.candidate.slot == "b"
    assert choice.why == "bottleneck score 0.41"
    assert {r.name: r.value for r in choice.evidence} == {"stage_share": 0.0, "bottleneck_score": 0.41}


def test_without_scores_the_front_decides_and_the_reason_says_so(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    choice = _choose(make_packet([make_candidate("b", order=1, stage=1), make_candidate("a", order=0)]))
    assert (choice.candidate.slot, choice.why) == ("a", "first open slot of stage 0")


def test_a_score_that_is_not_a_number_decides_nothing(make_candidate: MakeCandidate, make_packet: MakePacket) -> None:
    packet = make_packet(
        [make_candidate("a", score=math.nan), make_candidate("b", order=1, stage=1, score=0.1)],
    )
    assert _choose(packet).candidate.slot == "b"


def test_masked_candidates_are_left_out_and_only_missing_kernels_are_waited_for(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    ready = make_candidate("a")
    pending = make_candidate("b", kernel_id=None, masked=("kernel not ready",))
    refused = make_candidate("c", kernel_id=None, masked=("refused by the forge: dead",))
    taken = make_candidate("d", masked=("no free seed: blending",))
    both = make_candidate("e", kernel_id=None, masked=("kernel not ready", "over budget: 2 of 1 parameters"))
    packet = make_packet([ready, pending, refused, taken, both])
    assert pool(packet, frozenset()) == (ready, pending)
    assert masks(packet.candidates[2:]) == (
        "kernel not ready (1), no free seed (1), over budget (1), refused by the forge (1)"
    )


def test_what_the_budget_has_no_room_for_is_left_out(make_candidate: MakeCandidate, make_packet: MakePacket) -> None:
    small, large = make_candidate("a", params=100, kind="plain"), make_candidate("a", params=101)
    packet = make_packet([small, large], params=1000, max_params=1100)
    assert _choose(packet).candidate is small


def test_what_did_not_stay_comes_back_only_when_nothing_else_is_left(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    first, second = make_candidate("a"), make_candidate("a", kind="plain")
    undone = frozenset({("a", "gated_mixing_design")})
    assert pool(make_packet([first, second]), undone) == (second,)
    assert pool(make_packet([first]), undone) == (first,)


def test_room_counts_slots_up_to_the_budget(make_candidate: MakeCandidate, make_packet: MakePacket) -> None:
    three = [make_candidate(name, order=n) for n, name in enumerate("abc")]
    assert room(three, make_packet(three)) == 3
    assert room(three, make_packet(three, max_params=1250)) == 2
    assert room([], make_packet()) == 0


# -- null hypotheses -----------------------------------------------------------------------------------------------------


def test_front_first_takes_the_foremost_slot_however_full_its_stage(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    slots = _slots((0, ("fossilized",)), (0, ()), (1, ()))
    open_ = [make_candidate("b", order=1, stage=0, score=0.1), make_candidate("c", order=2, stage=1, score=0.9)]
    packet = make_packet(open_, slots=slots)
    assert _choose(packet, Where.FRONT_FIRST).candidate.slot == "b"
    assert _choose(packet, Where.BALANCED).candidate.slot == "c"


def test_there_is_room_for_as_many_as_the_cheapest_leave_it_whatever_their_order(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    dear, cheap = make_candidate("a", params=900), make_candidate("b", order=1, params=200)
    for open_ in ([dear, cheap], [cheap, dear]):
        assert room(open_, make_packet(open_, params=1000, max_params=1500)) == 1


def test_the_highest_score_decides_alone_where_that_is_asked_for_and_goes_by_the_name_of_its_signal(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    slots = _slots((0, ()), (0, ("fossilized",)), (1, ()))
    places = [("a", 0, 0.2), ("b", 0, 0.5), ("c", 1, None)]
    open_ = [make_candidate(n, order=i, stage=g, score=s) for i, (n, g, s) in enumerate(places)]
    choice = _choose(make_packet(open_, slots=slots, signal="gradient_snr"), Where.HIGHEST_SCORE)
    assert (choice.candidate.slot, choice.why) == ("b", "gradient snr score 0.5")
    assert {r.name: r.value for r in choice.evidence} == {"gradient_snr_score": 0.5}


def test_inverse_takes_the_slot_with_the_lowest_score(make_candidate: MakeCandidate, make_packet: MakePacket) -> None:
    open_ = [make_candidate(n, order=i, score=s) for i, (n, s) in enumerate(zip("abc", (0.5, 0.2, None), strict=True))]
    assert _choose(make_packet(open_), Where.INVERSE).candidate.slot == "b"


def test_random_growth_draws_slots_and_designs_evenly_and_says_with_which_probability(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    open_ = [make_candidate("a", kind=kind) for kind in ("plain", "gated")] + [make_candidate("b", order=1)]
    drawn: Counter[tuple[str, str]] = Counter()
    for seed in range(4000):
        choice = _choose(make_packet(open_), Where.RANDOM, seed=seed)
        drawn[(choice.candidate.slot, choice.candidate.kind)] += 1
        expected = 0.5 if choice.candidate.slot == "b" else 0.25
        assert choice.log_propensity == pytest.approx(math.log(expected))
    assert drawn[("b", "gated_mixing")] / 4000 == pytest.approx(0.5, abs=0.03)
    assert drawn[("a", "plain")] / 4000 == pytest.approx(0.25, abs=0.03)


def test_random_growth_repeats_itself_with_the_seed_in_any_run_and_differs_between_boundaries(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    open_ = [make_candidate(name, order=n) for n, name in enumerate("abcdef")]

    def drawn(run_id: str, seed: int) -> list[str]:
        packets = [make_packet(open_, boundary=boundary, run_id=run_id) for boundary in range(1, 20)]
        return [_choose(packet, Where.RANDOM, seed=seed).candidate.slot for packet in packets]

    assert drawn("run-1", 0) == drawn("run-2", 0)
    assert drawn("run-1", 0) != drawn("run-1", 1)
    assert len(set(drawn("run-1", 0))) > 2


def test_a_whole_block_is_appended_behind_the_last_and_never_put_in_front_of_a_trained_one(
    make_candidate: MakeCandidate, make_packet: MakePacket
) -> None:
    front, last = (make_candidate(slot, order=order, kind="block", params=50) for slot, order in (("a", 0), ("b", 3)))
    gated = make_candidate("a", order=0, kind="gated_mixing")
    packet = make_packet([gated, front, last])
    assert pool(packet, frozenset()) == (gated, last)
    chosen = _choose(packet)
    assert (chosen.candidate, chosen.why) == (last, "a whole block, behind the last one")
    taken = make_candidate("b", order=3, kind="block", masked=("no free seed: fossilized",))
    assert _choose(make_packet([gated, front, taken])).candidate == gated
