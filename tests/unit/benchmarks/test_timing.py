"""The clock beside the clock: equal arms come out equal, and a planted cost is seen."""

import gc
from collections.abc import Mapping

import pytest
import torch

from benchmarks.dormant import training_step
from benchmarks.graft import Training
from benchmarks.support.hosts import HOSTS, batch_of, fresh
from benchmarks.support.timing import Plan, Work, in_turn, interleaved, paired_ratio
from esper.blueprints import initial_state, pack_kernel
from esper.ir import REGISTRY
from esper.kasmina import placement_of
from esper.services.tolaria.snapshot import digest

PLAN = Plan(rounds=4, turns=40, sample_s=2e-4, seed=0)


def counting(length: int) -> Work:
    return lambda: sum(range(length))


def arms(_: int) -> Mapping[str, Work]:
    return {"plain": counting(2_000), "control": counting(2_000), "slower": counting(2_200)}


def test_equal_arms_come_out_equal_and_a_tenth_more_work_is_seen() -> None:
    times = interleaved(arms, PLAN)
    assert {name: len(taken) for name, taken in times.items()} == {"plain": 160, "control": 160, "slower": 160}
    # Wide margins, as the machine may be busy: the benchmark itself has ten times as many turns.
    assert paired_ratio(times, "control", "plain") == pytest.approx(1.0, abs=0.03)
    assert paired_ratio(times, "slower", "plain") == pytest.approx(1.1, abs=0.05)


def test_every_round_has_arms_of_its_own() -> None:
    rounds: list[int] = []

    def make(index: int) -> Mapping[str, Work]:
        rounds.append(index)
        return {"plain": counting(100)}

    interleaved(make, Plan(rounds=3, turns=1, sample_s=1e-6, seed=0))
    assert rounds == [0, 1, 2]


def test_the_garbage_collector_is_back_when_a_measurement_ends() -> None:
    seen: list[bool] = []
    in_turn({"look": lambda: seen.append(gc.isenabled())}, samples=3)
    assert seen == [False] * 4
    assert gc.isenabled()


def test_what_is_run_in_turn_keeps_its_order() -> None:
    order: list[str] = []
    in_turn({"graft": lambda: order.append("graft"), "undo": lambda: order.append("undo")}, samples=2)
    assert order == ["graft", "undo"] * 3


def test_there_are_six_hosts_and_equal_seeds_make_equal_ones() -> None:
    assert len(HOSTS) == 6
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for host in HOSTS:
        first, second, other = fresh(host, 0), fresh(host, 0), fresh(host, 1)
        inputs, _ = batch_of(host, 0)
        assert torch.equal(first.eval()(inputs), second.eval()(inputs))
        assert not torch.equal(first(inputs), other.eval()(inputs))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_a_host_learns_its_batch(host: object) -> None:
    chosen = next(one for one in HOSTS if one is host)
    model = fresh(chosen, 0).train()
    inputs, targets = batch_of(chosen, 0)
    before = float(chosen.loss(model(inputs), targets).detach())
    step = training_step(model, chosen, 0)
    for _ in range(30):
        step()
    assert float(chosen.loss(model(inputs), targets).detach()) < before


def test_a_graft_of_the_benchmark_is_real_and_undone() -> None:
    host = next(one for one in HOSTS if one.name == "perceptron")
    place = next(iter(placement_of(Training(host, 0).model).slots.values()))
    ir = REGISTRY.build("gated_mlp", place.site())
    data = pack_kernel(ir, initial_state(ir, seed=0, dtype="float32"), seed=0)
    training = Training(host, 0, place.name, "gated_mlp", data)
    before, logits = digest(training.subject), training.logits()
    training.graft()
    assert digest(training.subject) != before
    assert all(torch.equal(now, was) for now, was in zip(training.logits(), logits, strict=True))
    training.step()
    assert not torch.equal(training.logits()[0], logits[0])
    training.roll_back()
    assert digest(training.subject) == before
