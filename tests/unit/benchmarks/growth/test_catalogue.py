"""The study of the catalogue grafts every design that fits, each by itself."""

from pathlib import Path

from benchmarks.growth.bench import Bench
from benchmarks.growth.catalogue import SMALL, UNGROWN, eligible, study
from benchmarks.growth.study import Plan
from benchmarks.growth.tasks import TASKS
from esper.ir import REGISTRY


def test_each_task_has_its_designs_and_together_they_are_the_catalogue(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        found = {
            name: set(eligible(TASKS[name], TASKS[name].slots[-1], bench)) for name in TASKS if name != "characters"
        }
    assert "gated_mlp" in found["friedman"]
    assert "wider_mlp" in found["narrow"]
    assert set().union(*found.values()) == set(REGISTRY.names())


def test_every_design_is_grafted_once_and_the_control_goes_on_without(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        found = study(bench, Plan.quick(), "friedman")
        designs = eligible(TASKS["friedman"], TASKS["friedman"].slots[1], bench)
    assert set(found.arms) == {SMALL, UNGROWN, *designs}
    for arm, outcomes in found.arms.items():
        grafts = [place.blueprint for outcome in outcomes for place in outcome.places]
        assert grafts == ([arm] * len(outcomes) if arm in designs else [])
    spent = {arm: outcomes[0].flops for arm, outcomes in found.arms.items() if arm != SMALL}
    assert max(spent.values()) < 1.2 * spent[UNGROWN], "no design is given more than the control"
