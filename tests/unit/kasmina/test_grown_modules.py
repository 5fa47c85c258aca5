"""A grown model is a torch module like any other."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esper.errors import ConfigError
from esper.kasmina import (
    detach,
    placement_of,
    topology,
    wrap,
)
from esper.kasmina.grafted import Graft, is_grafted
from esper.testing.zoo import ZOO
from tests.laws.support import graft, output, same, wrapped


def test_the_hosts_later_optimizer_sees_the_graft() -> None:
    model = wrapped(ZOO["residual_mlp"])
    newborn = graft(model, "blocks.1", "mlp_adapter")
    names = [name for name, _ in model.named_parameters()]
    assert set(newborn.parameters) < set(names)
    held = {id(p) for group in torch.optim.SGD(model.parameters(), lr=0.1).param_groups for p in group["params"]}
    assert all(id(parameter) in held for parameter in newborn.parameters.values())
    assert len(list(model.parameters())) == len(names)


def test_modes_types_and_functions_reach_the_graft() -> None:
    model = wrapped(ZOO["resnet"])
    graft(model, "layer1.0", "gated_conv")
    inner = list(model.get_submodule("layer1.0.esper_grafts").modules())
    model.eval()
    assert not any(module.training for module in inner)
    model.train()
    assert all(module.training for module in inner)
    seen: list[nn.Module] = []
    model.apply(seen.append)
    assert set(inner) <= set(seen)
    assert len(seen) == len(set(seen)) == len(list(model.modules()))
    model.double()
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float64}
    model(ZOO["resnet"].batch(dtype=torch.float64).x)
    model.half()
    assert model.get_submodule("layer1.0.esper_grafts.0").alpha.dtype == torch.float16
    model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.to("meta")
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_newborn_joins_in_the_mode_of_its_host() -> None:
    model = wrapped(ZOO["mlp"])
    model.eval()
    graft(model, "fc1", "mlp_adapter")
    assert not any(module.training for module in model.modules())
    model.train()
    graft(model, "fc2", "mlp_adapter")
    assert all(module.training for module in model.modules())


def test_hooks_on_a_module_see_the_grown_value_and_survive_the_graft() -> None:
    model, host = wrapped(ZOO["mlp"]), ZOO["mlp"]
    module = model.get_submodule("fc2")
    seen: list[Tensor] = []
    order: list[str] = []
    handle = module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    module.register_forward_pre_hook(lambda _m, _i: order.append("before"))
    module.register_full_backward_hook(lambda _m, _i, _o: order.append("backward"))
    newborn = graft(model, "fc2", "mlp_adapter")
    with torch.no_grad():
        for parameter in newborn.parameters.values():
            parameter.add_(0.1)
    host.loss(model, host.batch()).backward()
    h = nn.functional.linear(torch.relu(model.fc1(host.batch().x)), module.weight, module.bias)
    assert torch.equal(seen[0], h + newborn.kernel(h))
    detach(model, "fc2", 0)
    host.loss(model, host.batch()).backward()
    assert torch.equal(seen[1], h)
    assert order == ["before", "backward"] * 2
    handle.remove()


def test_a_grown_model_copies_and_pickles() -> None:
    host = ZOO["resnet"]
    model = wrapped(host).eval()
    for slot in placement_of(model).slots:
        newborn = graft(model, slot, "gated_conv")
        with torch.no_grad():
            for parameter in newborn.parameters.values():
                parameter.add_(0.05)
    value = output(model, host.batch())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(twin, host.batch()), value)
        assert topology(twin) == topology(model)
        own = set(twin.modules())
        assert all(place.module in own for place in placement_of(twin).slots.values())
        for entry in topology(twin):
            detach(twin, entry.slot, entry.seed_idx)
        assert type(twin.layer1[0]) is type(ZOO["resnet"].model().layer1[0])
    assert torch.equal(output(model, host.batch()), value)


def test_a_state_loads_strictly_only_where_the_same_has_grown() -> None:
    model, twin = wrapped(ZOO["mlp"]), wrapped(ZOO["mlp"], seed=1)
    graft(model, "fc1", "mlp_adapter")
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*fc1.esper_grafts.0.kernel"):
        twin.load_state_dict(model.state_dict())
    graft(twin, "fc1", "mlp_adapter", seed=4)
    twin.load_state_dict(model.state_dict())
    assert same(twin.state_dict(), model.state_dict())


def test_a_shared_module_grows_all_its_uses_at_once() -> None:
    host = ZOO["shared"]
    model = wrapped(host)
    newborn = graft(model, "body", "mlp_adapter")
    assert model.body is model.again
    assert is_grafted(model.again)
    assert len({name.split(".")[0] for name in newborn.parameters}) == 1
    assert {"body.esper_grafts.0.alpha", "again.esper_grafts.0.alpha"} <= model.state_dict().keys()
    calls: list[Tensor] = []
    newborn.kernel.register_forward_hook(lambda _m, _i, out: calls.append(out))
    host.loss(model, host.batch()).backward()
    assert len(calls) == 3


def test_tied_weights_stay_tied_through_growth_and_back() -> None:
    model = wrapped(ZOO["tied_language_model"])
    graft(model, "blocks.0", "self_attention")
    twin = copy.deepcopy(model)
    detach(model, "blocks.0", 0)
    assert model.head.weight is model.embedding.weight
    assert twin.head.weight is twin.embedding.weight


def test_grafts_of_nested_slots_both_count() -> None:
    host = ZOO["sequential_slots"]
    model = wrapped(host)
    outer, inner = graft(model, "1", "mlp_adapter"), graft(model, "1.0", "gated_mlp")
    with torch.no_grad():
        for parameter in (*outer.parameters.values(), *inner.parameters.values()):
            parameter.add_(0.1)
    h = torch.randn(6, 8)
    first = model[1]._modules["0"]
    a = torch.relu(first[0](h))
    a = a + inner.kernel(a)
    b = torch.relu(model[1]._modules["1"][0](a))
    assert torch.equal(model[1](h), b + outer.kernel(b))
    detach(model, "1", 0)
    assert torch.equal(model[1](h), b)


def test_a_parametrization_on_top_of_a_graft_blocks_only_its_end() -> None:
    model = wrapped(ZOO["mlp"])
    graft(model, "fc1", "mlp_adapter")
    parametrize.register_parametrization(model.fc1, "weight", nn.Identity())
    assert is_grafted(model.fc1)
    graft(model, "fc1", "gated_mlp", seed_idx=1)
    detach(model, "fc1", 1)
    with pytest.raises(ConfigError, match=r"changed since.*undo that first"):
        detach(model, "fc1", 0)
    assert len(topology(model)) == 1
    parametrize.remove_parametrizations(model.fc1, "weight")
    detach(model, "fc1", 0)
    assert type(model.fc1) is nn.Linear


def test_a_forward_replaced_on_the_instance_is_refused() -> None:
    model = wrapped(ZOO["mlp"])
    model.fc1.forward = model.fc1.forward
    with pytest.raises(ConfigError, match="forward was replaced on the instance"):
        graft(model, "fc1", "mlp_adapter")


def test_a_module_that_stops_returning_one_tensor_says_so() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.pair = nn.Linear(8, 8), False

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, None]:
            return (self.fc(x), None) if self.pair else self.fc(x)

    model = nn.Sequential(Fickle(), nn.Linear(8, 2))
    wrap(model, "0", example=torch.randn(3, 8))
    graft(model, "0", "mlp_adapter")
    model[0].pair = True
    with pytest.raises(ConfigError, match="returned a tuple"):
        model[0](torch.randn(3, 8))


def test_a_class_with_slots_of_its_own_swaps_too() -> None:
    class Slotted(nn.Module):
        __slots__ = ("extra",)

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    model = nn.Sequential(Slotted(), nn.Linear(8, 2))
    object.__setattr__(model[0], "extra", 3)
    x = torch.randn(3, 8)
    wrap(model, "0", example=x)
    plain = model(x)
    graft(model, "0", "mlp_adapter")
    assert torch.equal(model(x), plain)
    assert model[0].extra == 3
    detach(model, "0", 0)
    assert type(model[0]) is Slotted


def test_padding_that_torch_skips_on_its_fast_path_passes_through_a_graft() -> None:
    host = ZOO["torch_transformer"]
    model = wrapped(host).eval()
    ids = host.batch().x
    padding = torch.zeros(ids.shape, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = model(ids, padding)
        newborn = graft(model, "encoder.layers.0", "gated_mlp")
        assert torch.equal(model(ids, padding), plain)
        for parameter in newborn.parameters.values():
            parameter.add_(0.1)
        grown = model(ids, padding)
    assert not torch.equal(grown, plain)
    slow = model(ids, padding)
    torch.testing.assert_close(grown[~padding], slow[~padding].detach(), rtol=1e-5, atol=1e-5)


def test_autocast_runs_through_a_graft() -> None:
    host = ZOO["resnet"]
    model = wrapped(host)
    with torch.autocast("cpu", torch.bfloat16):
        plain = output(model.eval(), host.batch())
        newborn = graft(model, "layer1.0", "gated_conv")
        assert torch.equal(output(model, host.batch()), plain)
        model.train()
        host.loss(model, host.batch()).backward()
    assert all(parameter.grad is not None for parameter in newborn.parameters.values())


def test_a_graft_describes_itself() -> None:
    model = wrapped(ZOO["mlp"])
    newborn = graft(model, "fc1", "mlp_adapter", seed_idx=3)
    found = model.get_submodule("fc1.esper_grafts.3")
    assert isinstance(found, Graft)
    assert found.kernel is newborn.kernel
    entry = topology(model)[0]
    assert (entry.slot, entry.seed_idx, entry.kernel_id, entry.blueprint) == (
        "fc1",
        3,
        newborn.kernel_id,
        "mlp_adapter",
    )
