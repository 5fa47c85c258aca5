"""Moments are drawn by their seed, and what broke in a schedule is told with the way to see it again."""

import pytest

from benchmarks import chaos_urza
from benchmarks.support.store_history import Promise
from benchmarks.support.store_stage import STRIKES, Outcome, Victim, plan


def outcome(seed: int, *breaches: list[str], planted: bool = True, crashes: tuple[str, ...] = ()) -> Outcome:
    return Outcome(
        seed,
        moments=10,
        strikes={"s3": 11},
        breaches=list(breaches),
        planted={"lost_event": planted},
        crashes=list(crashes),
    )


def test_a_seed_draws_its_moments_and_every_part_is_killed() -> None:
    plans = [plan(seed) for seed in range(20)]
    assert plans == [plan(seed) for seed in range(20)]
    assert len({tuple(drawn) for drawn in plans}) == 20
    assert all(len(drawn) == STRIKES for drawn in plans)
    victims = [victim for drawn in plans for strike in drawn for victim in strike.victims]
    assert min(victims.count(victim) for victim in Victim) > 40


def test_the_service_is_started_after_what_it_needs() -> None:
    for strike in plan(0, 500):
        assert Victim.SERVICE not in strike.victims[:-1]


def test_kept_promises_and_found_faults_meet_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    answer = chaos_urza.judged([outcome(0), outcome(1)])
    assert all(target.met for target in answer.targets)
    assert answer.metrics["moments"] == 20
    assert capsys.readouterr().err == ""


def test_a_broken_promise_misses_its_target_and_says_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    lost = [Promise.LOST.value, "sha256:0", "a kernel that was acknowledged"]
    answer = chaos_urza.judged([outcome(0), outcome(17, lost)])
    assert [target.metric for target in answer.targets if not target.met] == ["lost_writes"]
    said = capsys.readouterr().err
    assert "python -m benchmarks.support.store_stage 17" in said
    assert "lost_writes sha256:0" in said


def test_a_planted_fault_that_is_not_found_misses_a_target() -> None:
    answer = chaos_urza.judged([outcome(0), outcome(1, planted=False)])
    assert [target.metric for target in answer.targets if not target.met] == ["planted_faults_found"]


def test_a_store_that_does_not_come_back_misses_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    answer = chaos_urza.judged([outcome(4, crashes=("the service ended with 1",))])
    assert [target.metric for target in answer.targets if not target.met] == ["moments_not_come_back_from"]
    assert "the service ended with 1" in capsys.readouterr().err
