"""Arms that grow do what their names say: places by one rule each, grafts that help, cannot or harm, and equal FLOPs."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.growth.acceptance import _make, area, beyond
from benchmarks.growth.controllers import OneDesign, controller_of
from benchmarks.growth.location import DEFAULT, GRAFTS, RANDOM, RULES
from benchmarks.growth.plants import ABSENT, HARMFUL, INERT, LINEAR, USEFUL, USELESS
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.scratch import SHARES, SMALL, _controls, final
from benchmarks.growth.tasks import TASKS
from benchmarks.growth.training import perform
from esper.demos.flops import step_flops
from esper.demos.messages import Place
from esper.demos.training import graft_from_the_start

DIGITS, UNEVEN = TASKS["digits"], TASKS["uneven"]


def test_a_graft_of_any_stage_of_the_uneven_host_takes_as_many_flops() -> None:
    data = UNEVEN.load(0, None).train.first(32)
    added = []
    for stage in (1, 2, 3):
        model = UNEVEN.small(0)
        bare = step_flops(model, data.inputs, data.labels)
        UNEVEN.wrapped(model, UNEVEN.load(0, None))
        graft_from_the_start(model, (Place(f"stage{stage}.1", 0, UNEVEN.blueprint),))
        added.append(step_flops(model, data.inputs, data.labels) - bare)
    assert added[0] > 0
    assert len(set(added)) == 1


@pytest.mark.parametrize("arm", [DEFAULT, RANDOM])
def test_rules_place_equally_many_grafts_of_one_design(tmp_path: Path, arm: str) -> None:
    run = Run(task="uneven", arm=arm, seed=2, rate=0.01, width=4, steps=60, controller=RULES[arm].value, grafts=GRAFTS)
    assert isinstance(controller_of(run, UNEVEN.blueprint), OneDesign)
    grown = perform(run, tmp_path, None)
    joined = [event for event in grown.events if "grafted" in event]
    assert len(joined) == GRAFTS
    assert all(UNEVEN.blueprint in event for event in joined)


def planted(plant: str, folder: Path, *, steps: int = 100) -> Outcome:
    return perform(_make(DIGITS, plant, steps)(0.01, 1), folder, None)


def test_an_absent_graft_and_an_inert_one_leave_the_run_as_it_is(tmp_path: Path) -> None:
    absent, inert = planted(ABSENT, tmp_path), planted(INERT, tmp_path)
    plain = perform(msgspec.structs.replace(absent.run, plant=""), tmp_path, None)
    assert absent.test_loss == plain.test_loss
    assert absent.flops > plain.flops
    until = min((verdict.step for verdict in inert.verdicts), default=100)
    assert until > 25
    same = {step: loss for step, loss in absent.held if step <= until}
    assert {step: loss for step, loss in inert.held if step <= until} == same


def test_grafts_share_their_beginning_and_a_harmful_one_harms(tmp_path: Path) -> None:
    absent, useful, harmful, useless = (planted(plant, tmp_path) for plant in (ABSENT, USEFUL, HARMFUL, USELESS))
    before = [dict(outcome.held)[25] for outcome in (absent, useful, harmful, useless)]
    assert len(set(before)) == 1
    assert any(f"grafted {LINEAR}" in event for event in useless.events)
    without = dict(absent.held)
    assert dict(useful.held)[30] != without[30] != dict(useless.held)[30]
    undone = any(verdict.kind in ("culled", "rolled_back") for verdict in harmful.verdicts)
    assert undone or any(loss > 1.05 * without[step] for step, loss in harmful.held if step > 30)


def test_static_controls_spend_what_esper_spent_or_more_by_its_share() -> None:
    grown = Outcome(
        run=Run(task="digits", arm="esper", seed=1, rate=0.01, width=3, steps=10, controller="balanced"), commit="",
        steps=10, params=1, flops=850_000, overhead=0, validation=0.0, validation_loss=0.0, test=None, test_loss=None,
        places=(Place("stage1.0", 0, "gated_conv"),), curve=(), events=(), seconds=0.0,
    )  # fmt: skip
    runs = {arm: make(0.01, 1) for arm, make in _controls({1: grown}).items()}
    assert [runs[final(share)].flops for share in SHARES] == [850_000, 1_000_000, round(850_000 / 0.7)]
    assert all(runs[final(share)].places == grown.places for share in SHARES)
    assert runs[SMALL].flops == 850_000
    assert runs[SMALL].places == ()


def test_the_area_under_the_operating_curve_is_the_chance_of_the_right_order() -> None:
    assert area([3.0, 2.0], [1.0, 0.0]) == 1.0
    assert area([1.0], [1.0]) == 0.5
    assert area([0.0, 2.0], [1.0]) == 0.5


def test_a_point_of_the_operating_curve_culls_no_more_of_the_useful_than_it_says() -> None:
    useful, others = [float(number) for number in range(20)], [0.5, 1.5, 2.5, 30.0]
    assert beyond(useful, others, 0.05) == 0.75
    assert beyond(useful, others, 0.1) == 0.5
    assert beyond(useful, others, 0.5) == 0.25
