"""What a blueprint reads is part of it: drawn, written, read, and refused where a site has nothing of the kind."""

import json

import pytest

from esper.errors import ConfigError, InvalidBlueprint
from esper.ir import REGISTRY, BlueprintIR, BlueprintRegistry, Graph, Kind, Layout, Reads, Site, check_site
from esper.ir.diagnosis import diagnose


def wider(entering: int = 5, leaving: int = 3) -> BlueprintIR:
    return REGISTRY.build("wider_mlp", Site(Layout.FEATURES, leaving, entering=entering))


def test_a_blueprint_that_reads_what_enters_has_two_widths() -> None:
    ir = wider()
    assert (ir.reads, ir.channels, ir.out_channels) == (Reads.INPUT, 5, 3)
    again = BlueprintIR.from_json(ir.canonical())
    assert (again, again.digest) == (ir, ir.digest)


def test_what_it_reads_is_part_of_what_it_is() -> None:
    """Equal nodes and widths: behind a layer and beside it they are two designs."""
    square = wider(4, 4).to_json()
    behind = BlueprintIR.from_json({name: value for name, value in square.items() if name != "reads"})
    assert (behind.reads, behind.nodes) == (Reads.OUTPUT, wider(4, 4).nodes)
    assert behind.digest != wider(4, 4).digest
    assert b"reads" not in behind.canonical()


def test_what_is_added_to_its_own_input_has_one_width() -> None:
    text = {name: value for name, value in wider().to_json().items() if name != "reads"}
    with pytest.raises(InvalidBlueprint, match="the output has 3 channels"):
        BlueprintIR.from_json(text)


def test_a_word_that_is_neither_is_refused_with_its_place() -> None:
    text = {**wider().to_json(), "reads": "inputs"}
    with pytest.raises(InvalidBlueprint, match="unknown reads 'inputs'") as refused:
        BlueprintIR.from_json(text)
    assert (refused.value.path, refused.value.todo) == ("$.reads", "Did you mean 'input'?")
    assert [fault.finding.path for fault in diagnose(json.dumps(text, indent=1)).faults] == ["$.reads"]
    with pytest.raises(ConfigError, match="it may read output or input"):
        BlueprintRegistry().register("mine", lambda g, site: g.input, reads="inputs")


@pytest.mark.parametrize("site", [Site(Layout.FEATURES, 3, entering=6), Site(Layout.FEATURES, 4, entering=5)])
def test_a_site_of_other_widths_is_refused(site: Site) -> None:
    with pytest.raises(InvalidBlueprint, match=r"read 5 channels and to add to 3 .* enter and . leave"):
        check_site(wider(), site)


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        (Site(Layout.FEATURES, 3, entering=5), Kind.WIDENING),
        (Site(Layout.FEATURES, 5, entering=5), Kind.PLAIN),
        (Site(Layout.FEATURES, 8, entering=5), Kind.PLAIN),
        (Site(Layout.TOKENS, 3, entering=5), Kind.PLAIN),
    ],
)
def test_controllers_are_told_to_widen_where_a_perceptron_narrows(site: Site, kind: Kind) -> None:
    assert REGISTRY.get("wider_mlp").kind_at(site) is kind
    assert REGISTRY.get("gated_mlp").kind_at(site) is Kind.GATED


def test_a_site_of_which_the_input_is_not_known_offers_nothing_to_read() -> None:
    refusal = REGISTRY.refusal("wider_mlp", Site(Layout.FEATURES, 3))
    assert refusal is not None
    assert (refusal.path, "what enters the module" in refusal.why) == ("$.reads", True)
    assert Graph(Layout.FEATURES, 3).reads is Reads.OUTPUT
