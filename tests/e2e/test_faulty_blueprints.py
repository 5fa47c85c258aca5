"""Blueprints that hang, crash, fill the memory or lie are stopped in the forge's own process; training goes on."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import esper.testing.faults as faults
from esper import assembly
from esper.contracts.adaptation import Candidate
from esper.ir import BlueprintRegistry, Graph, Handle, Site
from esper.kasmina import wrap
from esper.services.tamiyo.plateau import PlateauAdvisor
from esper.services.tolaria import attachment
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.config import GrowthConfig
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.snapshot import Subject
from esper.testing.faults import Fault

INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
PLANTED = (Fault.SEGFAULT, Fault.MEMORY, Fault.WRONG, Fault.NAN, Fault.RAISE)


def _sound(g: Graph, site: Site) -> Handle:
    return g.linear(g.gelu(g.linear(g.input, out=12)), out=site.channels, init="zero")


def _registry(*planted: Fault) -> BlueprintRegistry:
    registry = BlueprintRegistry()
    for fault in planted:
        registry.register(fault.value.partition(".")[2], _design(fault))
    registry.register("sound", _sound)
    return registry


def _design(fault: Fault):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def design(g: Graph, site: Site) -> Handle:
        return g.linear(g.apply(fault.value, g.linear(g.input, out=6)), out=site.channels, init="zero")

    return design


def _run(root: Path, registry: BlueprintRegistry) -> tuple[nn.Module, torch.optim.Optimizer, Growth]:
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), example=INPUTS[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def validate(present: nn.Module) -> Tensor:
        losses: Tensor = (present(INPUTS) - INPUTS.prod(dim=1, keepdim=True)).square().squeeze(1)
        return losses

    platform = assembly.start(root, PlateauAdvisor(), extensions=(faults.__name__,))
    growth = attachment.start_growth(
        Subject(model, optimizer), platform, attachment.new_run(root, Team()),
        validate=validate, budget=Budget(), config=GrowthConfig(every=20), registry=registry,
    )  # fmt: skip
    return model, optimizer, growth


def _train_until_settled(model: nn.Module, optimizer: torch.optim.Optimizer, growth: Growth, limit_s: float) -> None:
    """Train until the forge has answered for every candidate."""
    ends = time.monotonic() + limit_s
    while any(mask == "kernel not ready" for c in growth.propose() for mask in c.masked):
        assert time.monotonic() < ends, [(c.blueprint, c.masked) for c in growth.propose()]
        loss = (model(INPUTS) - INPUTS.prod(dim=1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step(loss)
        time.sleep(0.01)


def _mask(candidates: tuple[Candidate, ...], fault: Fault) -> str:
    (candidate,) = [c for c in candidates if c.blueprint == fault.value.partition(".")[2]]
    return "; ".join(candidate.masked)


@pytest.mark.chaos
def test_faulty_blueprints_are_contained_while_training_goes_on(tmp_path: Path) -> None:
    model, optimizer, growth = _run(tmp_path, _registry(*PLANTED))
    with growth:
        _train_until_settled(model, optimizer, growth, limit_s=90)
        candidates = growth.propose()
        assert growth.spent_steps > 50, "training went on meanwhile"
    assert "quarantined" in _mask(candidates, Fault.SEGFAULT)
    for fault in PLANTED:
        assert "refused by the forge" in _mask(candidates, fault), fault
    (sound,) = [c for c in candidates if c.blueprint == "sound"]
    assert sound.kernel_id is not None, "the sound one behind the faulty ones was compiled"
    assert not any(event.kind is EventKind.UNASKED for event in growth.events)
    assert growth.counters["run"]["failures"] == 0
