"""Schedules are drawn by their seed, and what broke in one is told with the way to see it again."""

from collections import Counter

import pytest

from benchmarks import chaos_bus
from benchmarks.support.chaos_plan import TRAFFIC_S, BusKind, FaultKind, Flaw, plan
from benchmarks.support.chaos_stage import Outcome
from esper.testing.history import Promise

LOST = [Promise.LOST.value, "chaos.numbers", "one-0.0", 3, "sole", "acknowledged to its writer, without an effect"]


def outcome(seed: int, *breaches: list[object], crashes: tuple[str, ...] = ()) -> Outcome:
    return Outcome(seed, "redis", ["0.50 s: kill sole (0.10 s)"], breaches=list(breaches), crashes=list(crashes))


def controls(*, lost: bool, doubled: bool) -> list[tuple[tuple[int, Flaw], Outcome]]:
    doubling = [Promise.DOUBLED.value, *LOST[1:]]
    return [
        ((0, Flaw.EARLY), outcome(0, *([LOST] if lost else []))),
        ((0, Flaw.FORGETFUL), outcome(0, *([doubling] if doubled else []))),
    ]


def test_a_seed_draws_one_schedule() -> None:
    assert [plan(seed) for seed in range(50)] == [plan(seed) for seed in range(50)]
    assert len({plan(seed).faults for seed in range(50)}) == 50


def test_every_fault_is_drawn_and_lies_within_the_traffic() -> None:
    plans = [plan(seed) for seed in range(200)]
    faults = [fault for drawn in plans for fault in drawn.faults]
    assert {fault.kind for fault in faults} == set(FaultKind)
    assert all(0 < fault.at_s <= fault.at_s + fault.lasts_s <= TRAFFIC_S + 1e-9 for fault in faults)
    kinds = Counter(drawn.bus for drawn in plans)
    assert min(kinds[kind] for kind in BusKind) > 30


def test_kept_promises_and_found_flaws_meet_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    answer = chaos_bus.judged([outcome(0), outcome(1)], controls(lost=True, doubled=True))
    assert all(target.met for target in answer.targets)
    assert answer.ratios == {"sound_over_schedules": 1.0}
    assert capsys.readouterr().err == ""


def test_a_broken_promise_misses_its_target_and_says_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    answer = chaos_bus.judged([outcome(0), outcome(17, LOST)], controls(lost=True, doubled=True))
    assert [target.metric for target in answer.targets if not target.met] == ["lost"]
    said = capsys.readouterr().err
    assert "python -m benchmarks.support.chaos_stage 17" in said
    assert "one-0.0 3 sole" in said


def test_a_process_that_crashed_misses_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    answer = chaos_bus.judged([outcome(4, crashes=("one ended with 1",))], controls(lost=True, doubled=True))
    assert [target.metric for target in answer.targets if not target.met] == ["processes_that_crashed"]
    assert "one ended with 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lost", "doubled", "missed"), [(False, True, "planted_lost_found"), (True, False, "planted_doubled_found")]
)
def test_a_flaw_that_is_not_found_misses_its_target(lost: bool, doubled: bool, missed: str) -> None:
    answer = chaos_bus.judged([outcome(0)], controls(lost=lost, doubled=doubled))
    assert [target.metric for target in answer.targets if not target.met] == [missed]
