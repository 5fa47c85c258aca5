"""A folded model computes what the grown one did, goes on training, and knows nothing of Esper."""

import copy
import pickle

import pytest
import torch
from torch.fx import GraphModule

from esper.kasmina import fold, set_active
from esper.kasmina.folding.fold import difference
from esper.kasmina.incubation import Incubation, plant
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, EVERY_PLACE, graft, output, wrapped
from tests.unit.kasmina.folding import (
    folded,
    grown,
    names_in,
    stir,
)


@EVERY_PLACE
def test_every_host_folds_at_every_slot_with_every_blueprint(name: str, slot: str, blueprints: tuple[str, ...]) -> None:
    host = ZOO[name]
    for blueprint in blueprints:
        model = grown(host, slot, blueprint, "mlp_adapter")
        keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
        alone = folded(model, host)
        assert (list(model.state_dict()), [type(module) for module in model.modules()]) == (keys, classes)
        assert isinstance(alone.get_submodule(slot), GraphModule)
        for mode in (True, False):
            left, right = (output(each.train(mode), host.batch(seed=1)) for each in (model, alone))
            assert difference(left, right) <= 1e-6, (blueprint, mode)
        assert not [module for module in alone.modules() if "esper" in type(module).__module__.replace("testing", "")
                    and type(module).__module__ != "esper.testing.zoo"]  # fmt: skip
        assert not [attribute for module in alone.modules() for attribute in vars(module) if "esper" in attribute]


@EVERY_HOST
def test_a_folded_model_trains_as_the_grown_one_would(host: ZooHost) -> None:
    model = wrapped(host)
    for slot in list(model.esper.graph()):
        stir(graft(model, str(slot["slot"]), "mlp_adapter").kernel)
    alone = folded(model, host)
    assert len(list(alone.parameters())) == len(list(model.parameters()))
    steps = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (model, alone)]
    for seed in range(3):
        batch = host.batch(seed=seed)
        losses = []
        for each, step in zip((model, alone), steps, strict=True):
            step.zero_grad()
            torch.manual_seed(seed)
            loss = host.loss(each, batch)
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in each.parameters() if p.requires_grad)
            step.step()
            losses.append(loss.detach())
        assert difference(*losses) <= 1e-5
    assert difference(output(model.eval(), host.batch(seed=9)), output(alone.eval(), host.batch(seed=9))) <= 1e-5


@EVERY_HOST
def test_copies_of_a_folded_model_are_the_same_model(host: ZooHost) -> None:
    model = wrapped(host)
    slots = [str(slot["slot"]) for slot in model.esper.graph()]
    for slot in slots:
        stir(graft(model, slot, "gated_mlp").kernel)
    alone = folded(model, host).eval()
    again = copy.deepcopy(alone)
    assert list(again.state_dict()) == list(alone.state_dict())
    assert torch.equal(output(again, host.batch()), output(alone, host.batch()))
    double = copy.deepcopy(alone).double()
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    if host.shape is not None:
        assert difference(double(host.batch(dtype=torch.float64).x), alone(host.batch().x)) <= 1e-5


def test_a_model_without_grafts_folds_to_its_host() -> None:
    host = ZOO["resnet"]
    alone = fold(wrapped(host))
    assert [type(module) for module in alone.modules()] == [type(module) for module in host.model().modules()]
    assert list(alone.state_dict()) == list(host.model().state_dict())


def test_names_of_what_is_folded_are_those_that_the_documentation_gives() -> None:
    host = ZOO["mlp"]
    alone = folded(grown(host, "fc1", "mlp_adapter"), host)
    assert list(alone.state_dict()) == [
        "fc1.weight", "fc1.bias", "fc1.grafts.0.layer_norm1.weight", "fc1.grafts.0.layer_norm1.bias",
        "fc1.grafts.0.linear1.weight", "fc1.grafts.0.linear1.bias", "fc1.grafts.0.linear2.weight",
        "fc1.grafts.0.linear2.bias", "fc2.weight", "fc2.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    block = folded(grown(ZOO["residual_mlp"], "blocks.1", "mlp_adapter"), ZOO["residual_mlp"])
    assert "blocks.1.host.fc.weight" in block.state_dict()
    assert "blocks.0.fc.weight" in block.state_dict()


def test_a_seed_that_is_off_or_ablated_is_left_out_and_one_that_is_frozen_stays_frozen() -> None:
    host = ZOO["mlp"]
    model = grown(host, "fc1", "mlp_adapter", "gated_mlp", "mlp_adapter")
    set_active(model, "fc1", 0, False)
    model.get_submodule("fc1.esper_grafts.1").alpha.fill_(0.0)
    model.get_submodule("fc1.esper_grafts.2").requires_grad_(False)
    alone = folded(model, host)
    seeds = {name.split(".")[2] for name, _ in alone.named_parameters() if "grafts" in name}
    assert seeds == {"2"}
    assert not any(p.requires_grad for name, p in alone.named_parameters() if "grafts" in name)
    assert difference(output(model.eval(), host.batch()), output(alone.eval(), host.batch())) <= 1e-6


@pytest.mark.parametrize("with_graft", [False, True])
def test_what_learns_apart_is_left_out_without_a_trace(with_graft: bool) -> None:
    host = ZOO["residual_mlp"]
    model = grown(host, "blocks.1", "mlp_adapter") if with_graft else wrapped(host)
    kernel = copy.deepcopy(grown(host, "blocks.1", "gated_mlp").get_submodule("blocks.1.esper_grafts.0.kernel"))
    plant(model, "blocks.1", 1, Incubation(kernel, "", "gated_mlp"))
    alone = folded(model, host)
    assert isinstance(alone.get_submodule("blocks.1"), GraphModule) == with_graft
    assert difference(output(model.eval(), host.batch()), output(alone.eval(), host.batch())) <= 1e-6
    assert not [name for name in names_in(pickle.dumps(alone)) if name != "esper.testing.zoo"]
    assert not [name for module in alone.modules() for name in vars(module) if "esper" in name]


def test_the_strength_of_a_path_becomes_part_of_its_last_linear_map() -> None:
    host = ZOO["mlp"]
    model = grown(host, "fc1", "mlp_adapter")
    alone = folded(model, host)
    last = model.get_submodule("fc1.esper_grafts.0.kernel.linear2")
    torch.testing.assert_close(alone.get_submodule("fc1.grafts.0.linear2").weight, 0.7 * last.weight)
    assert "mul" not in alone.get_submodule("fc1").code


def test_nothing_is_drawn_and_gradients_in_flight_stay_with_the_model() -> None:
    host = ZOO["resnet"]
    model = grown(host, "layer1.0", "gated_conv")
    host.loss(model, host.batch()).backward()
    before = torch.get_rng_state()
    alone = fold(model, host.batch().x)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in alone.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_fold(dtype: torch.dtype) -> None:
    host = ZOO["padded_conv"]
    model = wrapped(host, dtype=dtype)
    stir(graft(model, "conv2", "conv_bottleneck").kernel)
    alone = fold(model)
    assert {p.dtype for p in alone.parameters()} == {dtype}
    x = host.batch(dtype=dtype).x
    assert difference(model.eval()(x), alone.eval()(x)) <= (1e-6 if dtype is torch.float64 else 0.02)


def test_under_autocast_the_sum_has_the_type_of_the_host() -> None:
    host = ZOO["residual_mlp"]
    model = grown(host, "blocks.1", "mlp_adapter").eval()
    alone = folded(model, host)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        left, right = model(host.batch().x), alone(host.batch().x)
    assert left.dtype is right.dtype
    assert difference(left, right) <= 0.02


def test_the_map_of_a_frozen_host_that_lies_channels_last_is_differentiated() -> None:
    host = ZOO["channels_last"]
    model = grown(host, "layer1.0", "gated_conv").requires_grad_(False)
    model.get_submodule("layer1.0.esper_grafts").requires_grad_(True)
    alone = folded(model, host)
    host.loss(alone, host.batch()).backward()  # torch itself crashes here with a group norm that has weights
    host.loss(model, host.batch()).backward()
    pairs = {name.replace(".kernel.", ".").replace("esper_grafts", "grafts"): p for name, p in model.named_parameters()}
    for name, parameter in alone.named_parameters():
        if parameter.requires_grad and "conv3" not in name:  # conv3 has taken the strength in
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, pairs[name].grad, rtol=1e-3, atol=1e-5)


# -- every operation -----------------------------------------------------------------------------------------------------
