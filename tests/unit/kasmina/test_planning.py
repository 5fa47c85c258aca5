"""The dry run: prices are those of real parameters, and nothing changes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esper.errors import InvalidBlueprint
from esper.ir import BlueprintRegistry, Graph, Handle, Layout, Site
from esper.kasmina import Place, Slot, placement_of, plan, wrap
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, graft, same, wrapped


@EVERY_HOST
def test_prices_are_those_of_the_parameters_that_join(host: ZooHost) -> None:
    model = wrapped(host)
    found = plan(model, host.batch().x, host.slots)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert found.host_params == before
    assert found.grafts
    for index, planned in enumerate(found.grafts):
        newborn = graft(model, planned.slot, planned.blueprint, seed_idx=index)
        assert planned.params == sum(parameter.numel() for parameter in newborn.parameters.values())
    after = sum(parameter.numel() for parameter in model.parameters())
    assert after - before == sum(planned.params for planned in found.grafts)


@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer", "conv1d"])
def test_flops_are_those_that_torch_counts_for_one_example(name: str) -> None:
    host = ZOO[name]
    with sdpa_kernel(SDPBackend.MATH):  # torch does not count its fused attention on the CPU
        check_flops(host)


def check_flops(host: ZooHost) -> None:
    for planned in plan(host.model(), host.batch().x).grafts:
        model = wrapped(host).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as before:
            model(host.batch().x)
        graft(model, planned.slot, planned.blueprint)
        with torch.no_grad(), FlopCounterMode(display=False) as after:
            model(host.batch().x)
        added = after.get_total_flops() - before.get_total_flops()
        assert added == pytest.approx(planned.flops * host.examples, rel=1e-6), planned


@EVERY_HOST
def test_planning_changes_nothing(host: ZooHost) -> None:
    model = host.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [dict(vars(module)).keys() for module in model.modules()]
    found = plan(model, host.batch().x, host.slots)
    assert type(model) is type(host.model()) or type(model).__module__ == "torch.nn.utils.parametrize"
    assert same(model.state_dict(), before)
    assert [vars(module).keys() for module in model.modules()] == attributes
    assert [place.name for place in found.places] == list(placement_of(wrapped(host)).slots)


def test_a_plan_reads_as_text() -> None:
    lines = str(plan(ZOO["resnet"].model(), ZOO["resnet"].batch().x)).splitlines()
    assert lines[:3] == [
        "host 3,842 params, 4 slots",
        "layer1.0: channels_2d, 6 channels 6x6",
        "    conv_bottleneck    +706 params  +48,384 FLOPs/example",
    ]
    assert "left out transformer_block at 4 slots: it is meant for tokens" in lines
    assert lines[-1] == "left out head: it makes the model's own output"


def test_blueprints_that_do_not_fit_are_refused_with_the_reason() -> None:
    found = plan(ZOO["mlp"].model(), ZOO["mlp"].batch().x)
    assert found.refusals["fc1/gated_conv"] == "it is meant for channels_1d, channels_2d"
    assert {graft.blueprint for graft in found.grafts} == {"gated_mlp", "low_rank", "mlp_adapter", "wider_mlp"}


def test_a_dead_design_is_left_out_with_the_reason() -> None:
    def dead(g: Graph, site: Site) -> Handle:
        return g.linear(g.linear(g.input, out=4, init="zero"), out=site.channels, init="zero")

    registry = BlueprintRegistry()
    registry.register("dead", dead, layouts=[Layout.FEATURES])
    found = plan(ZOO["mlp"].model(), ZOO["mlp"].batch().x, registry=registry)
    assert found.grafts == ()
    assert found.refusals.keys() >= {"fc1/dead", "fc2/dead"}
    with pytest.raises(InvalidBlueprint) as refused:
        registry.build("dead", Site(Layout.FEATURES, 8))
    assert found.refusals["fc1/dead"] == (refused.value.why or refused.value.what)


def test_nothing_to_grow_is_a_plan_too() -> None:
    found = plan(nn.Sequential(nn.Linear(5, 2)), torch.randn(3, 5))
    assert (found.places, found.grafts) == ((), ())
    assert "it makes the model's own output" in str(found)


def test_a_wrapped_model_plans_as_its_host_does_whether_it_has_run_or_not() -> None:
    host = ZOO["resnet"]
    plain = plan(host.model(), host.batch().x)
    for model in (wrapped(host), wrap(host.model())):
        found = plan(model, host.batch().x)
        assert found.grafts == plain.grafts
        assert [place.site() for place in found.places] == [place.site() for place in plain.places]


class Called(nn.Module):
    """A layer that runs twice in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.twice(torch.relu(self.twice(x))))
        return result


def flops_of(model: nn.Module, example: Tensor, slots: "list[str | Slot]") -> int:
    (found,) = [graft.flops for graft in plan(model, example, slots).grafts if graft.blueprint == "mlp_adapter"]
    return found


def test_features_of_a_sequence_are_paid_for_at_every_position() -> None:
    layer = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    by_hand: list[str | Slot] = [Slot("0", layout="features")]  # type: ignore[arg-type]
    once = flops_of(layer, torch.zeros(3, 6), by_hand)
    assert flops_of(layer, torch.zeros(3, 7, 6), by_hand) == 7 * once
    assert flops_of(layer, torch.zeros(3, 7, 2, 6), by_hand) == 14 * once


def test_sequences_whose_batch_is_the_second_axis_are_paid_for_at_every_position() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=False)
    model = nn.Sequential(layer, nn.Linear(6, 2))
    (place,) = plan(model, torch.zeros(7, 3, 6), ["0"]).places
    assert (place.layout, place.uses) == ("features", 7)


def test_a_module_that_runs_twice_is_paid_for_twice() -> None:
    assert flops_of(Called(), torch.zeros(3, 6), ["twice"]) == 2 * flops_of(
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), torch.zeros(3, 6), ["0"]
    )


def test_a_place_is_the_same_as_data() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    (place,) = plan(model, torch.zeros(3, 7, 6), ["0"]).places
    assert Place.from_dict(place.to_dict(), model) == place
    older = {key: value for key, value in place.to_dict().items() if key != "uses"}
    assert Place.from_dict(older, model).uses == 1
