"""Law 2: a newborn changes nothing, and all of it learns, at every slot of every host."""

import copy

import pytest
import torch
from torch import nn

from esper.ir import liveness
from esper.kasmina import Newborn, set_active
from esper.kasmina.grafted import Graft
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_PLACE, PRECISE, graft, output, wrapped

STEPS = 3
"""Steps 0, 1 and 2."""
LIVE = 1e-6
"""Least share of the graft's largest gradient that every parameter tensor reaches."""
OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
}
EVERY_DTYPE = pytest.mark.parametrize("dtype", PRECISE, ids=str)


def grown(name: str, slot: str, blueprint: str, dtype: torch.dtype) -> tuple[ZooHost, nn.Module, nn.Module, Newborn]:
    """Return a host, the same model without a graft, one with it, and the newborn."""
    host = ZOO[name]
    model = wrapped(host, dtype=dtype)
    before = copy.deepcopy(model)
    return host, before, model, graft(model, slot, blueprint)


def of(model: nn.Module, newborn: Newborn) -> Graft:
    """Return the joined graft."""
    found = model.get_submodule(f"{newborn.slot}.esper_grafts.{newborn.seed_idx}")
    assert isinstance(found, Graft)
    return found


@EVERY_DTYPE
@EVERY_PLACE
def test_a_newborn_changes_no_output(name: str, slot: str, blueprints: tuple[str, ...], dtype: torch.dtype) -> None:
    assert blueprints
    for blueprint in blueprints:
        check_neutral(*grown(name, slot, blueprint, dtype), dtype)


def check_neutral(host: ZooHost, before: nn.Module, model: nn.Module, newborn: Newborn, dtype: torch.dtype) -> None:
    assert {parameter.dtype for parameter in newborn.parameters.values()} == {dtype}
    assert float(of(model, newborn).alpha) == 1.0
    for seed in range(2):
        batch = host.batch(seed=seed, dtype=dtype)
        assert torch.equal(output(before.train(), batch), output(model.train(), batch))
        assert torch.equal(output(before.eval(), batch), output(model.eval(), batch))
        with torch.no_grad():
            assert torch.equal(output(before.eval(), batch), output(model.eval(), batch))


@pytest.mark.parametrize(("rule", "dtype"), [("sgd", torch.float64), ("adamw", torch.float32)])
@EVERY_PLACE
def test_every_parameter_of_a_newborn_lives_by_step_2_and_the_output_changes(
    name: str, slot: str, blueprints: tuple[str, ...], rule: str, dtype: torch.dtype
) -> None:
    for blueprint in blueprints:
        check_alive(*grown(name, slot, blueprint, dtype), rule, dtype)


def check_alive(
    host: ZooHost, before: nn.Module, model: nn.Module, newborn: Newborn, rule: str, dtype: torch.dtype
) -> None:
    optimizer = OPTIMIZERS[rule](model)
    zero = {f"{newborn.slot}.esper_grafts.0.kernel.{factor}" for factor in liveness(newborn.kernel.ir).zero_factors}
    peaks = dict.fromkeys(newborn.parameters, 0.0)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        host.loss(model, host.batch(seed=step, dtype=dtype)).backward()
        found = {n: float(p.grad.abs().max()) for n, p in newborn.parameters.items() if p.grad is not None}
        assert found.keys() == peaks.keys()
        assert step > 0 or all(found[factor] > 0.0 for factor in zero)
        largest = max(found.values())
        peaks = {n: max(peak, found[n] / largest) for n, peak in peaks.items()}
        optimizer.step()
        if step == 0:
            before.load_state_dict(model.state_dict(), strict=False)
            batch = host.batch(dtype=dtype)
            assert not torch.equal(output(before.eval(), batch), output(model.eval(), batch))
            model.train()
    assert zero
    assert not {name: peak for name, peak in peaks.items() if not peak > LIVE}


@pytest.mark.parametrize("mode", ["train", "eval"])
@EVERY_PLACE
def test_an_ablated_or_inactive_graft_leaves_the_value_of_the_host(
    name: str, slot: str, blueprints: tuple[str, ...], mode: str
) -> None:
    for blueprint in blueprints:
        check_ablated(*grown(name, slot, blueprint, torch.float32), mode)


def check_ablated(host: ZooHost, before: nn.Module, model: nn.Module, newborn: Newborn, mode: str) -> None:
    with torch.no_grad():
        for parameter in newborn.parameters.values():
            parameter.add_(0.1)
    batch = host.batch()
    for each in (before, model):
        each.train(mode == "train")
    plain = output(before, batch)
    assert not torch.equal(output(model, batch), plain)
    of(model, newborn).alpha.zero_()
    before.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(output(model, batch), output(before, batch))
    of(model, newborn).alpha.fill_(float("nan"))
    set_active(model, newborn.slot, 0, False)
    before.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(output(model, batch), output(before, batch))


def test_the_measure_of_life_finds_a_dead_newborn() -> None:
    """Both factors zero: no gradient reaches either, and training never moves them."""
    host, _, model, newborn = grown("mlp", "fc1", "mlp_adapter", torch.float32)
    with torch.no_grad():
        for parameter in newborn.parameters.values():
            parameter.zero_()
    host.loss(model, host.batch()).backward()
    live = [n for n, p in newborn.parameters.items() if p.grad is not None and bool(p.grad.any())]
    assert all(name.endswith(".bias") for name in live)
