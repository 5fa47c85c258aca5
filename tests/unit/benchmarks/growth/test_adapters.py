"""Adapters change nothing at birth, stay within one budget and leave the host as it was; those that are pruned begin beyond."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.growth.adapters import DESIGNS, PRUNED, Grafted, lora_params
from benchmarks.growth.frozen_host import ADALORA, FINE_TUNED, HOST, LORA, NEAR, RANK, _arms
from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.tasks import task_named
from benchmarks.growth.training import Course, perform

STEPS = 20
WIDTH = task_named(HOST).widths[0]
BUDGET = lora_params(task_named(HOST).small(0), RANK)
PRETRAIN = Run(task=HOST, arm="pretrained", seed=5, rate=0.003, width=WIDTH, steps=3, keep=True)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def host(shelf: Path) -> Outcome:
    return perform(PRETRAIN, shelf, None)


def test_every_arm_begins_with_the_same_host_and_takes_as_many_steps(host: Outcome) -> None:
    runs = [make(0.003, 5) for make in _arms(NEAR, {5: host}, STEPS).values()]
    assert len({(run.begin, run.steps, run.seed, run.width, run.task) for run in runs}) == 1
    assert {run.arm for run in runs} >= {LORA, ADALORA, FINE_TUNED, *DESIGNS}


@pytest.mark.parametrize("adapters", [*DESIGNS, *(f"{design}, {PRUNED}" for design in DESIGNS), LORA, ADALORA])
def test_adapters_are_born_without_a_change_stay_within_the_budget_and_leave_the_host(
    shelf: Path, host: Outcome, adapters: str
) -> None:
    course = Course(_arms(NEAR, {5: host}, STEPS)[adapters](0.003, 5), shelf, None)
    begun_with = course.params - host.params
    course.train()
    assert course.birth == 0.0
    assert 0.85 * BUDGET <= course.params - host.params <= BUDGET
    assert begun_with >= 1.4 * BUDGET or not (PRUNED in adapters or adapters == ADALORA)
    left = {_plain(name): value for name, value in course.model.state_dict().items()}
    assert all(torch.equal(left[name], value) for name, value in load_file(shelf / f"{host.run.key}.weights").items())
    learned = [p for p in course.model.parameters() if p.requires_grad]
    assert learned
    assert sum(p.numel() for p in learned if float(p.detach().abs().max()) == 0.0) <= 0.05 * BUDGET


def test_the_least_used_graft_leaves_first(shelf: Path, host: Outcome) -> None:
    course = Course(_arms(NEAR, {5: host}, STEPS)[f"low-rank, {PRUNED}"](0.003, 5), shelf, None)
    grafted = course.adapters
    assert isinstance(grafted, Grafted)
    idle = grafted.seeds[4]
    for parameter in idle.parameters:
        parameter.register_hook(torch.zeros_like)
    course.train()
    assert idle not in grafted.seeds
    assert len(grafted.seeds) >= 12


def _plain(name: str) -> str:
    """Return the name of a host's tensor without what PEFT puts around it."""
    return name.removeprefix("base_model.model.host.").replace(".base_layer.", ".")
