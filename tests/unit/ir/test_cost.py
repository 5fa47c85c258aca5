"""The static price of a design, against torch's counter and against sums done by hand."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esper.blueprints import KernelModule, initial_state
from esper.blueprints import catalog as catalog
from esper.errors import ContractError, InvalidBlueprint
from esper.ir import REGISTRY, BlueprintIR, Cost, Graph, Layout, Site, cost

SITES = [
    Site(Layout.FEATURES, 24),
    Site(Layout.TOKENS, 32, (9,)),
    Site(Layout.TOKENS, 32, (9,), causal=False),
    Site(Layout.CHANNELS_1D, 12, (15,)),
    Site(Layout.CHANNELS_2D, 16, (7, 5)),
    Site(Layout.FEATURES, 24, entering=7),
    Site(Layout.CHANNELS_1D, 12, (15,), entering=4),
]
CASES = [(name, site) for site in SITES for name in catalog.CATALOG if REGISTRY.refusal(name, site) is None]
BATCH = 3


def test_every_blueprint_of_the_catalogue_is_priced_somewhere() -> None:
    assert {name for name, _ in CASES} == set(catalog.CATALOG)
    assert {site.layout for _, site in CASES} == set(Layout)


@pytest.mark.parametrize(("name", "site"), CASES, ids=[f"{name}-{site.layout}-{site.entering}" for name, site in CASES])
def test_the_price_of_a_blueprint_is_what_torch_counts(name: str, site: Site) -> None:
    ir = REGISTRY.build(name, site)
    kernel = KernelModule(ir, initial_state(ir, seed=0, dtype="float32"))
    shape = (ir.channels, *site.extent) if site.layout.is_channels_first else (*site.extent, ir.channels)
    # The math form, as the counter knows no fused attention of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        kernel(torch.ones(BATCH, *shape))
    price = cost(ir, site.extent)
    assert price.params == sum(parameter.numel() for parameter in kernel.parameters())
    assert BATCH * price.flops == counter.get_total_flops()


def perceptron() -> BlueprintIR:
    g = Graph(Layout.TOKENS, 4)
    return g.finish(g.linear(g.gelu(g.linear(g.input, out=16)), out=4, init="zero"), name="perceptron")


def test_a_perceptron_costs_what_its_matrices_cost_at_every_position() -> None:
    # Parameters 4*16+16 + 16*4+4; a multiply-add counts 2, at each of 10 positions.
    assert cost(perceptron(), (10,)) == Cost(params=148, flops=2 * 10 * (4 * 16 + 16 * 4))


def test_a_grouped_convolution_costs_what_its_groups_cost() -> None:
    g = Graph(Layout.CHANNELS_2D, 6)
    ir = g.finish(g.conv(g.input, out=6, kernel=3, groups=3, bias=False), name="grouped")
    assert cost(ir, (4, 5)) == Cost(params=6 * 2 * 9, flops=2 * 20 * 6 * 2 * 9)


def test_attention_grows_with_the_square_of_the_positions() -> None:
    g = Graph(Layout.TOKENS, 8)
    ir = g.finish(g.attention(g.input, g.input, g.input, heads=2, causal=True), name="attention")
    assert [cost(ir, (length,)).flops for length in (1, 10)] == [2 * 16, 2 * 16 * 100]


def test_running_statistics_are_no_parameters() -> None:
    g = Graph(Layout.CHANNELS_2D, 6)
    ir = g.finish(g.batch_norm(g.input), name="norm")
    assert cost(ir, (4, 4)).params == 12
    assert set(ir.tensors) == {f"batch_norm1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize("extent", [(), (3, 3), (0,), (-1,)])
def test_an_extent_that_does_not_fit_the_layout_is_refused(extent: tuple[int, ...]) -> None:
    with pytest.raises(ContractError, match="does not fit the layout tokens"):
        cost(perceptron(), extent)


@pytest.mark.parametrize(("mode", "least"), [("reflect", 5), ("circular", 4)])
def test_positions_too_few_for_a_padding_are_refused(mode: str, least: int) -> None:
    g = Graph(Layout.CHANNELS_1D, 2)
    ir = g.finish(g.conv(g.input, out=2, kernel=9, padding_mode=mode), name="padded")
    assert cost(ir, (least,)).params == 2 * 2 * 9 + 2
    with pytest.raises(InvalidBlueprint, match=f"needs {least} positions"):
        cost(ir, (least - 1,))
