"""What can be known without building is refused without building."""

import math
from collections.abc import Callable

import pytest
from pydantic import JsonValue

from esper.blueprints import catalog
from esper.errors import CompilationError, InvalidBlueprint
from esper.ir import REGISTRY, BlueprintIR, Graph, Layout, Site
from esper.services.tezzeret.screening import ForgeLimits, knows_all_operations, screen
from esper.testing.forging import adapter

Document = dict[str, JsonValue]


def edited(change: Callable[[list[dict[str, object]]], object]) -> Document:
    """Return the JSON of a sound blueprint after its nodes were tampered with."""
    document = adapter().to_json()
    change(document["nodes"])  # type: ignore[arg-type]
    return document


def attrs_of(nodes: list[dict[str, object]], index: int) -> dict[str, object]:
    attrs = nodes[index]["attrs"]
    assert isinstance(attrs, dict)
    return attrs


def wide(channels: int, hidden: int) -> BlueprintIR:
    graph = Graph(Layout.FEATURES, channels)
    return graph.finish(
        graph.linear(graph.gelu(graph.linear(graph.input, out=hidden)), out=channels, init="zero"), "wide"
    )


def test_a_sound_blueprint_passes() -> None:
    assert screen(adapter().to_json(), ForgeLimits()) == adapter()


@pytest.mark.parametrize("name", catalog.CATALOG)
@pytest.mark.parametrize("layout", list(Layout))
def test_the_catalogue_passes_at_the_widths_of_common_hosts(name: str, layout: Layout) -> None:
    for channels in (1, 16, 256, 768):
        site = Site(layout, channels, entering=channels)
        if REGISTRY.refusal(name, site) is None:
            screen(REGISTRY.build(name, site).to_json(), ForgeLimits())


def test_a_dead_graft_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidBlueprint, match="dead at birth"):
        screen(edited(lambda nodes: attrs_of(nodes, 0).update(init="zero")), ForgeLimits())


def test_a_graft_that_is_not_neutral_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidBlueprint, match="not neutral at birth"):
        screen(edited(lambda nodes: attrs_of(nodes, 2).update(init="standard")), ForgeLimits())


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, "Infinity"])
def test_a_constant_that_is_not_finite_is_refused_with_its_path(value: object) -> None:
    def scaled(nodes: list[dict[str, object]]) -> None:
        nodes[1].update(op="scale", attrs={"value": value})

    with pytest.raises(InvalidBlueprint) as caught:
        screen(edited(scaled), ForgeLimits())
    assert caught.value.path == "$.nodes[1].attrs.value"


def test_a_wrong_shape_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidBlueprint) as caught:
        screen(edited(lambda nodes: attrs_of(nodes, 2).update(out=7)), ForgeLimits())
    assert caught.value.path == "$.output"


def test_a_parameter_bomb_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidBlueprint, match=r"33562624 parameters; the cap is 26843545"):
        screen(wide(4096, 4096).to_json(), ForgeLimits())


def test_a_memory_bomb_is_refused_with_both_numbers() -> None:
    """Reflected padding of a widely dilated kernel needs maps of 2,000 by 2,000 positions."""
    graph = Graph(Layout.CHANNELS_2D, 64)
    spread = graph.conv(graph.input, out=64, kernel=63, dilation=64, groups=64, padding_mode="reflect")
    bomb = graph.finish(graph.conv(graph.gelu(spread), out=64, kernel=1, init="zero"), "bomb")
    with pytest.raises(CompilationError, match=r"takes about \d+ MiB; the limit is 2048"):
        screen(bomb.to_json(), ForgeLimits())


def test_a_blueprint_that_would_take_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(CompilationError, match=r"takes up to \d+ s; the deadline is 0\.1 s"):
        screen(wide(1024, 1024).to_json(), ForgeLimits(deadline_s=0.1))


def test_more_memory_admits_more_parameters() -> None:
    large = wide(4096, 4096).to_json()
    with pytest.raises(InvalidBlueprint, match="too many parameters"):
        screen(large, ForgeLimits(memory_limit_mb=2048))
    assert screen(large, ForgeLimits(memory_limit_mb=8192)).channels == 4096


def test_unknown_extensions_are_left_to_the_children() -> None:
    assert knows_all_operations(adapter().to_json())
    assert not knows_all_operations(edited(lambda nodes: nodes[1].update(op="acme.fft")))
    assert knows_all_operations(edited(lambda nodes: nodes[1].update(op="gleu")))
