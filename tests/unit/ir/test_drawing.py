"""Drawing a design, and putting it where it can be found by name."""

from collections.abc import Callable

import pytest
from torch import nn

import esper
from esper.blueprints import catalog as catalog
from esper.errors import ConfigError, ContractError, EsperError, InvalidBlueprint, NotFound, VersionTaken
from esper.ir import (
    REGISTRY,
    BlueprintRegistry,
    Graph,
    Handle,
    Kind,
    Layout,
    OpSpec,
    Site,
    blueprint,
    build,
    check_site,
    ops,
)

FEATURES = Site(Layout.FEATURES, 4)


def plain(g: Graph, site: Site) -> Handle:
    return g.pointwise(g.gelu(g.pointwise(g.input, out=8)), out=site.channels, init="zero")


def test_a_drawn_design_is_what_its_methods_say() -> None:
    ir = build(plain, FEATURES, "plain")
    assert [(node.id, node.op, node.inputs) for node in ir.nodes] == [
        ("linear1", "linear", ("input",)),
        ("gelu1", "gelu", ("linear1",)),
        ("linear2", "linear", ("gelu1",)),
    ]
    assert (ir.output, ir.channels, ir.layout) == ("linear2", 4, Layout.FEATURES)


def test_a_pointwise_map_is_what_the_layout_asks_for() -> None:
    assert build(plain, Site(Layout.CHANNELS_2D, 4), "plain").nodes[0].op == "conv"
    assert build(plain, Site(Layout.TOKENS, 4), "plain").nodes[0].op == "linear"


def test_plus_and_times_are_operations() -> None:
    g = Graph(Layout.FEATURES, 4)
    total = g.input * g.tanh(g.input) + g.input
    assert [node.op for node in g.nodes] == ["tanh", "mul", "add"]
    assert (total.id, total.channels) == ("add1", 4)


def test_every_operation_of_the_closed_set_has_a_method_of_its_name() -> None:
    assert [name for name in ops.names() if ops.get(name).trusted and not hasattr(Graph, name)] == []


def foreign(g: Graph) -> Handle:
    return g.relu(Graph(g.layout, 4).input)


MISTAKES: dict[str, tuple[Callable[[Graph], object], str, str]] = {
    "a value of another graph": (foreign, "$.nodes[0].inputs[0]", "not a value of this graph"),
    "a tensor": (lambda g: g.relu(1.0), "$.nodes[0].inputs[0]", "Start from g.input"),  # type: ignore[arg-type]
    "widths that differ": (
        lambda g: g.input + g.linear(g.input, out=5), "$.nodes[1].inputs", "4 and 5 channels, and must have as many",
    ),
    "an even kernel": (lambda g: g.conv(g.input, out=4, kernel=2), "$.nodes[0].attrs.kernel", "odd"),
    "a convolution of features": (lambda g: g.conv(g.input, out=4, kernel=3), "$.nodes[0].op", "does not work on features"),
    "heads that do not divide": (
        lambda g: g.attention(g.input, g.input, g.input, heads=3, causal=False), "$.nodes[0].attrs.heads", "do not divide",
    ),
    "an id that is taken": (
        lambda g: g.linear(g.linear(g.input, out=4, id="a"), out=4, id="a"), "$.nodes[1].id", "appears twice",
    ),
    "an operation that is not there": (lambda g: g.apply("dropout", g.input), "$.nodes[0].op", "op table is closed"),
    "a start that is not there": (
        lambda g: g.linear(g.input, out=4, init="ones"), "$.nodes[0].attrs.init", "standard, zero",
    ),
}  # fmt: skip
IMAGES = {"an even kernel"}
SEQUENCES = {"heads that do not divide"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_where_it_is_made(mistake: str) -> None:
    draw, path, reason = MISTAKES[mistake]
    layout = Layout.CHANNELS_2D if mistake in IMAGES else Layout.TOKENS if mistake in SEQUENCES else Layout.FEATURES
    with pytest.raises(InvalidBlueprint) as refused:
        draw(Graph(layout, 4))
    assert refused.value.path == path
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda g, site: None, "returned NoneType, not a value of its graph"),
        (lambda g, site: Graph(g.layout, 4).input, "not a value of its graph"),
        (lambda g, site: g.linear(g.input, out=5), "the output has 5 channels"),
    ],
)
def test_a_design_that_returns_something_else_is_refused(returned: Callable[..., Handle], reason: str) -> None:
    with pytest.raises(InvalidBlueprint, match=reason) as refused:
        build(returned, FEATURES, "wrong")
    assert refused.value.path == "$.output"


def test_a_branch_that_is_not_used_is_refused() -> None:
    def forgetful(g: Graph, site: Site) -> Handle:
        g.tanh(g.input)
        return plain(g, site)

    with pytest.raises(InvalidBlueprint, match="'tanh1' leads nowhere"):
        build(forgetful, FEATURES, "forgetful")


@pytest.mark.parametrize(("channels", "extent"), [(0, ()), (4, (3,)), (4, (3, 0))])
def test_a_site_that_cannot_exist_is_refused(channels: int, extent: tuple[int, ...]) -> None:
    with pytest.raises(ContractError):
        Site(Layout.CHANNELS_2D, channels, extent)


class Block(nn.Module):
    """A torch module, as somebody may hand it to the decorator."""


@pytest.mark.parametrize("module", [Block, Block(), nn.Linear(2, 2), nn.Sequential])
def test_a_torch_module_is_refused_with_the_reason_and_the_way_out(module: object) -> None:
    with pytest.raises(ConfigError) as refused:
        blueprint("mine")(module)  # type: ignore[arg-type]
    assert "blueprint 'mine' is a torch module" in refused.value.what
    assert "a module is code" in refused.value.why
    assert "f(g, site)" in refused.value.todo
    assert "mine" not in REGISTRY.names()


def test_the_decorator_without_a_name_says_how_to_write_it() -> None:
    with pytest.raises(ConfigError, match="is a torch module"):
        esper.blueprint(Block)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Write @esper.blueprint\('my_block'\)"):
        esper.blueprint(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", [7, "text", int])
def test_what_is_no_function_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match="is not a function"):
        BlueprintRegistry().register("mine", thing)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "my block", "9lives", "a" * 129])
def test_a_name_that_cannot_travel_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="bad blueprint name"):
        BlueprintRegistry().register(name, plain)


def test_a_name_belongs_to_one_design_and_its_author_may_write_it_again() -> None:
    registry = BlueprintRegistry()
    first = registry.register("mine", plain)
    assert registry.register("mine", plain, kind=Kind.GATED) != first
    assert registry.get("mine").kind is Kind.GATED
    with pytest.raises(VersionTaken, match=r"test_drawing.plain has that name"):
        registry.register("mine", lambda g, site: plain(g, site))


def test_an_unknown_name_is_answered_with_what_was_meant() -> None:
    with pytest.raises(NotFound, match="Did you mean 'gated_conv'"):
        REGISTRY.get("gated_cnv")


def test_the_catalogue_offers_what_fits_a_site() -> None:
    assert REGISTRY.eligible(Site(Layout.FEATURES, 8)) == ["gated_mlp", "low_rank", "mlp_adapter"]
    maps = set(REGISTRY.eligible(Site(Layout.CHANNELS_2D, 8, (8, 8))))
    assert maps == set(catalog.CATALOG) - {"transformer_block", "wider_conv", "wider_mlp"}
    assert "wider_mlp" in REGISTRY.eligible(Site(Layout.FEATURES, 8, entering=5))
    assert "wider_conv" in REGISTRY.eligible(Site(Layout.CHANNELS_2D, 8, entering=5))
    assert "transformer_block" in REGISTRY.eligible(Site(Layout.TOKENS, 8))
    refused = REGISTRY.refusal("gated_conv", Site(Layout.TOKENS, 8))
    assert refused is not None
    assert "meant for channels_1d, channels_2d" in refused.why


def test_a_registry_builds_only_what_can_be_grafted() -> None:
    registry = BlueprintRegistry()
    registry.register("loud", lambda g, site: g.pointwise(g.gelu(g.input), out=site.channels))
    with pytest.raises(InvalidBlueprint, match="not neutral at birth") as refused:
        registry.build("loud", FEATURES)
    assert refused.value.code == "ESP-3110"
    assert registry.eligible(FEATURES) == []


def test_a_design_that_looks_ahead_is_refused_at_a_causal_site_only() -> None:
    def mixing(g: Graph, site: Site) -> Handle:
        return g.linear(g.attention(g.input, g.input, g.input, heads=2, causal=False), out=site.channels, init="zero")

    ir = build(mixing, Site(Layout.TOKENS, 4), "mixing")
    check_site(ir, Site(Layout.TOKENS, 4, causal=False))
    with pytest.raises(InvalidBlueprint, match="looks ahead") as refused:
        check_site(ir, Site(Layout.TOKENS, 4))
    assert refused.value.path == "$.nodes[0].attrs.causal"


@pytest.mark.parametrize(
    ("site", "path"), [(Site(Layout.TOKENS, 4), "$.layout"), (Site(Layout.FEATURES, 5), "$.channels")]
)
def test_a_design_for_another_site_is_refused(site: Site, path: str) -> None:
    with pytest.raises(InvalidBlueprint, match="blueprint and site differ") as refused:
        check_site(build(plain, FEATURES, "plain"), site)
    assert refused.value.path == path


def test_an_extension_is_marked_untrusted_whatever_it_says() -> None:
    ops.register(OpSpec("test.square"))
    try:
        g = Graph(Layout.FEATURES, 2)
        ir = g.finish(g.apply("test.square", g.input), name="square")
        assert not ir.is_trusted
        assert build(plain, FEATURES, "plain").is_trusted
    finally:
        ops.unregister("test.square")
    with pytest.raises(NotFound):
        ops.get("test.square")


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda: ops.register(OpSpec("square")), "names without a dot belong to the closed set"),
        (lambda: ops.register(OpSpec("a.b.c")), "names without a dot"),
        (lambda: ops.unregister("linear"), "belongs to the closed set"),
    ],
)
def test_the_closed_set_stays_closed(act: Callable[[], object], reason: str) -> None:
    with pytest.raises(EsperError, match=reason):
        act()
