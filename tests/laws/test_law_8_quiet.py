"""Law 8: nothing that Esper does draws from the global random generators."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from esper.kasmina import (
    SIGNALS,
    HealthMeter,
    detach,
    placement_of,
    plan,
    restore_topology,
    set_active,
    signal_named,
    topology,
    unwrap,
    wrap,
)
from esper.kasmina.quiet import quiet, quiet_eval
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, EVERY_PLACE, gradients, graft, kernel_for, same, wrapped


def states() -> tuple[str, ...]:
    """Return the state of every global generator."""
    return str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())


@contextmanager
def undrawn() -> Iterator[None]:
    """Fail where something inside draws a number."""
    before = states()
    yield
    assert states() == before


def test_the_check_notices_each_generator() -> None:
    for draw in (random.random, np.random.random, lambda: torch.rand(1)):
        with pytest.raises(AssertionError), undrawn():
            draw()


@EVERY_HOST
def test_planning_wrapping_and_unwrapping_draw_nothing(host: ZooHost) -> None:
    model = host.model()
    with undrawn():
        plan(model, host.batch().x, host.slots)
        unwrap(wrap(model, host.slots))
        unwrap(wrap(model, host.slots, example=host.batch().x))
        wrap(model, host.slots, example=host.batch().x)


@EVERY_PLACE
def test_building_grafting_switching_and_detaching_draw_nothing(
    name: str, slot: str, blueprints: tuple[str, ...]
) -> None:
    model = wrapped(ZOO[name])
    for blueprint in blueprints:
        with undrawn():
            kernel_for(model, slot, blueprint)
            graft(model, slot, blueprint)
            set_active(model, slot, 0, False)
            entries = topology(model)
            detach(model, slot, 0)
            restore_topology(model, entries)
            restore_topology(model, ())


@pytest.mark.parametrize("name", SIGNALS)
@EVERY_HOST
def test_measuring_health_and_signals_changes_neither_the_generators_nor_the_step(host: ZooHost, name: str) -> None:
    plain, model = host.model(), wrapped(host)
    drawn = []
    for each in (plain, model):
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.1)
        host.loss(each, host.batch()).backward()
        optimizer.step()
        if each is model:
            with undrawn():
                meter, probe = HealthMeter(model, optimizer), signal_named(name, model, optimizer)
                meter.arm()
                probe.arm()
        host.loss(each, host.batch()).backward()
        optimizer.step()
        drawn.append((states(), gradients(each)))
    with undrawn():
        probe.disarm()
        scores = probe.read()
        signals = meter.read(run_id="run", step=1)
    assert drawn[0][0] == drawn[1][0]
    assert same(drawn[0][1], drawn[1][1])
    assert same(plain.state_dict(), model.state_dict())
    assert scores.keys() == placement_of(model).slots.keys()
    assert [signal.layer_id for signal in signals] == list(placement_of(model).slots)


@EVERY_HOST
def test_a_quiet_pass_leaves_generators_modes_and_buffers_alone(host: ZooHost) -> None:
    model = wrapped(host)
    model.train()
    first = next(module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv1d)))
    first.eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with undrawn(), quiet(model):
        model.train()
        model(host.batch().x)
        torch.rand(3)
    with undrawn(), quiet_eval(model):
        assert not any(module.training for module in model.modules())
        assert not model(host.batch().x).requires_grad
    assert [module.training for module in model.modules()] == modes
    assert same(dict(model.named_buffers()), buffers)


SCRIPT = """
import random, sys
import numpy as np
import torch

torch.set_num_threads(1)

def states():
    return str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())

model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.linspace(0, 1, 10).reshape(5, 2)
before = states()

import esper

esper.plan(model, x)
esper.wrap(model, example=x)
growth = esper.attach(
    model, optimizer, validate=lambda present: present(x).square().mean(1), every=2, steps=8, budget="x99",
    root=sys.argv[1],
)
with growth:
    for _ in range(8):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step(loss)
    event = growth.graft("0", "mlp_adapter")
    growth.rollback(event)
sys.exit(states() != before)
"""
"""Imports draw too, and only the first time: rich does."""


def test_a_whole_run_in_a_fresh_interpreter_draws_nothing(root: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT, str(root)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
