"""Grafts join and leave without a trace; the structural half of law 4."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import ConfigError, Conflict, KernelRejected, NotFound
from esper.ir import Layout
from esper.kasmina import (
    GraftEntry,
    Slot,
    detach,
    join,
    placement_of,
    restore_topology,
    set_active,
    topology,
    unwrap,
    wrap,
)
from esper.kasmina.grafted import grafts_of, is_grafted
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, EVERY_PLACE, graft, kernel_for, output, same, wrapped


def structure(model: nn.Module) -> dict[str, Any]:
    """Return all of a model that is not a number."""
    return {
        "classes": [(name, type(module)) for name, module in model.named_modules(remove_duplicate=False)],
        "children": [[name for name, _ in module.named_children()] for module in model.modules()],
        "iteration": [list(module) for module in model.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))],
        "attributes": [list(vars(module)) for module in model.modules()],
        "members": [(list(m._modules), list(m._parameters), list(m._buffers)) for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "parameters": [(name, id(parameter)) for name, parameter in model.named_parameters()],
        "buffers": [(name, id(buffer)) for name, buffer in model.named_buffers()],
        "keys": list(model.state_dict()),
        "text": repr(model),
    }


@EVERY_PLACE
def test_joining_and_detaching_leaves_no_trace(name: str, slot: str, blueprints: tuple[str, ...]) -> None:
    host = ZOO[name]
    model = wrapped(host)
    before, state = structure(model), copy.deepcopy(model.state_dict())
    value = output(model.eval(), host.batch())
    model.train()
    for blueprint in blueprints:
        graft(model, slot, blueprint)
        assert is_grafted(model.get_submodule(slot))
        assert len(topology(model)) == 1
        detach(model, slot, 0)
        assert structure(model) == before
    assert same(model.state_dict(), state)
    assert torch.equal(output(model.eval(), host.batch()), value)


@EVERY_HOST
def test_several_seeds_in_every_slot_come_and_go_in_any_order(host: ZooHost) -> None:
    model = wrapped(host)
    before = structure(model)
    value = output(model.eval(), host.batch())
    slots = list(placement_of(model).slots)
    for slot in slots:
        for seed_idx in (2, 0, 11, 1):
            graft(model, slot, "mlp_adapter", seed_idx=seed_idx, seed=seed_idx)
    assert [(entry.slot, entry.seed_idx) for entry in topology(model)] == [(s, i) for s in slots for i in (0, 1, 2, 11)]
    assert torch.equal(output(model, host.batch()), value)
    for seed_idx in (1, 11, 0, 2):
        for slot in reversed(slots):
            detach(model, slot, seed_idx)
    assert structure(model) == before


def test_seeds_apply_in_the_order_of_their_indices_beyond_nine_too() -> None:
    model, host = wrapped(ZOO["mlp"]), ZOO["mlp"]
    for seed_idx in (10, 2, 9, 0):
        newborn = graft(model, "fc1", "gated_mlp", seed_idx=seed_idx, seed=seed_idx)
        with torch.no_grad():
            for parameter in newborn.parameters.values():
                parameter.add_(0.1)
    module = model.get_submodule("fc1")
    assert list(grafts_of(module)) == ["0", "2", "9", "10"]
    names = [name for name, _ in model.named_parameters() if "esper_grafts" in name]
    assert [int(name.split(".")[2]) for name in names] == sorted(int(name.split(".")[2]) for name in names)
    h = nn.functional.linear(host.batch().x, module.weight, module.bias)
    for seed_idx in (0, 2, 9, 10):
        h = h + model.get_submodule(f"fc1.esper_grafts.{seed_idx}").kernel(h)
    assert torch.equal(module(host.batch().x), h)


@EVERY_HOST
def test_a_topology_comes_back_from_data(host: ZooHost) -> None:
    model = wrapped(host)
    bare = structure(model)
    for index, slot in enumerate(placement_of(model).slots):
        graft(model, slot, "mlp_adapter", seed_idx=index)
        graft(model, slot, "gated_mlp", seed_idx=index + 1)
        set_active(model, slot, index, False)
    entries, state = topology(model), copy.deepcopy(model.state_dict())
    value = output(model.eval(), host.batch())
    restore_topology(model, ())
    assert structure(model) == bare
    restore_topology(model, entries)
    assert topology(model) == entries
    model.load_state_dict(state)
    assert list(model.state_dict()) == list(state)
    assert torch.equal(output(model.eval(), host.batch()), value)
    fresh = wrapped(host, seed=5)
    restore_topology(fresh, entries)
    fresh.load_state_dict(state)
    assert torch.equal(output(fresh.eval(), host.batch()), value)


def test_grafts_that_stay_keep_their_parameters_and_take_the_name_of_the_entry() -> None:
    model = wrapped(ZOO["mlp"])
    stays = graft(model, "fc1", "mlp_adapter")
    entries = topology(model)
    graft(model, "fc2", "gated_mlp")
    detach(model, "fc1", 0)
    again = graft(model, "fc1", "mlp_adapter", seed=7)
    assert again.kernel_id != stays.kernel_id
    restore_topology(model, entries)
    assert topology(model) == entries
    assert (
        dict(model.named_parameters())["fc1.esper_grafts.0.kernel.linear1.weight"]
        is (again.parameters["fc1.esper_grafts.0.kernel.linear1.weight"])
    )


def test_a_topology_of_another_model_is_refused_before_anything_changes() -> None:
    model = wrapped(ZOO["mlp"])
    graft(model, "fc1", "mlp_adapter")
    before = topology(model)
    with pytest.raises(NotFound, match="slot 'nowhere'"):
        restore_topology(model, (GraftEntry("nowhere", 0, "", "", before[0].ir),))
    assert topology(model) == before


def test_unwrapping_a_grown_model_gives_the_host_back() -> None:
    host = ZOO["resnet"]
    plain, model = host.model(), wrapped(host)
    for slot in placement_of(model).slots:
        graft(model, slot, "gated_conv")
    unwrap(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert same(model.state_dict(), plain.state_dict())


# -- what joins ----------------------------------------------------------------------------------------------------------


def test_bytes_of_another_digest_never_join() -> None:
    model = wrapped(ZOO["mlp"])
    data, kernel_id = kernel_for(model, "fc1", "mlp_adapter")
    with pytest.raises(KernelRejected, match="digest"):
        join(model, "fc1", 0, data[:-1] + bytes([data[-1] ^ 1]), kernel_id=kernel_id)
    assert topology(model) == ()


def test_a_kernel_for_another_site_does_not_fit() -> None:
    model = wrapped(ZOO["resnet"])
    data, kernel_id = kernel_for(model, "layer2.0", "gated_conv")
    with pytest.raises(ConfigError, match="8 channels in channels_2d; the site has 6"):
        join(model, "layer1.0", 0, data, kernel_id=kernel_id)


def test_a_taken_seed_and_an_empty_one_are_conflicts() -> None:
    model = wrapped(ZOO["mlp"])
    graft(model, "fc1", "mlp_adapter")
    with pytest.raises(Conflict, match="seed 0 of fc1 is taken"):
        graft(model, "fc1", "gated_mlp")
    for act in (
        lambda: detach(model, "fc1", 1),
        lambda: detach(model, "fc2", 0),
        lambda: set_active(model, "fc2", 0, True),
    ):
        with pytest.raises(Conflict, match="nothing is joined"):
            act()
    with pytest.raises(ConfigError, match="counted from 0"):
        graft(model, "fc1", "gated_mlp", seed_idx=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_newborn_has_the_type_of_its_host(dtype: torch.dtype) -> None:
    model = wrapped(ZOO["mlp"]).to(dtype)
    newborn = graft(model, "fc1", "mlp_adapter")
    own = model.get_submodule("fc1.esper_grafts.0")
    assert {tensor.dtype for tensor in own.state_dict().values()} == {dtype}
    assert {parameter.dtype for parameter in newborn.parameters.values()} == {dtype}


def test_a_slot_without_parameters_takes_the_type_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 2)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    wrap(model, Slot("1", layout=Layout.FEATURES), example=x)
    newborn = graft(model, "1", "mlp_adapter")
    assert {parameter.dtype for parameter in newborn.parameters.values()} == {torch.float64}
    model(x).sum().backward()


def test_a_module_of_mixed_types_gives_its_newborn_that_of_its_bulk() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm(x.float()).bfloat16())

    model = nn.Sequential(Mixed(), nn.Linear(8, 2)).bfloat16()
    model[0].norm.float()
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    wrap(model, "0", example=x)
    newborn = graft(model, "0", "mlp_adapter")
    assert {parameter.dtype for parameter in newborn.parameters.values()} == {torch.bfloat16}
    model(x).sum().backward()


@pytest.mark.parametrize(("name", "last"), [("channels_last", True), ("resnet", False), ("padded_conv", False)])
def test_a_newborn_has_the_memory_format_of_its_host(name: str, last: bool) -> None:
    model, host = wrapped(ZOO[name]), ZOO[name]
    slot = next(iter(placement_of(model).slots))
    newborn = graft(model, slot, "gated_conv")
    images = [p for p in newborn.parameters.values() if p.ndim == 4 and p.shape[2] > 1]
    assert images
    assert all(p.is_contiguous(memory_format=torch.channels_last) == last for p in images)
    assert all(p.is_contiguous() != last for p in images)
    module = model.get_submodule(slot)
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    model(host.batch().x)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == last
