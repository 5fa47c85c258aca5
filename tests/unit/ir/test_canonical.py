"""The one text of a design, and the digest that names it everywhere."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprints import catalog as catalog
from esper.ir import REGISTRY, BlueprintIR, Graph, Layout, Site, digest_of, is_digest
from esper.testing.blueprints import blueprints

CANONICAL = (
    b'{"channels":2,"layout":"features","nodes":['
    b'{"attrs":{"bias":false,"init":"standard","out":3},"id":"up","inputs":["input"],"op":"linear"},'
    b'{"attrs":{},"id":"relu1","inputs":["up"],"op":"relu"},'
    b'{"attrs":{"bias":true,"init":"zero","out":2},"id":"down","inputs":["relu1"],"op":"linear"}],'
    b'"output":"down","version":1}'
)
DIGEST = "sha256:2bdb86f8ffe128b5bb94a4659ffaf3a6d3fb7f40a15b23cf7cd6da848ae6d449"


def known(name: str = "known") -> BlueprintIR:
    g = Graph(Layout.FEATURES, 2)
    hidden = g.relu(g.linear(g.input, out=3, bias=False, id="up"))
    return g.finish(g.linear(hidden, out=2, init="zero", id="down"), name=name)


def test_the_canonical_text_of_a_known_design_never_changes() -> None:
    assert known().canonical() == CANONICAL
    assert known().digest == DIGEST


def test_a_digest_is_a_sha256_of_the_bytes() -> None:
    # The digest of the empty text is in every textbook.
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "g" * 64, "sha256:" + "a" * 63, "md5:" + "a" * 64, "sha256:" + "A" * 64]
)
def test_what_is_no_content_address_is_told_apart(text: str) -> None:
    assert not is_digest(text)
    assert is_digest(known().digest)


def test_the_name_of_a_design_is_no_part_of_it() -> None:
    assert known("one").digest == known("other").digest
    assert known("one") == known("other")


def shuffled(value: Any, dice: random.Random) -> Any:
    """Return the same JSON with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = dice.sample(sorted(value), len(value))
        return {key: shuffled(value[key], dice) for key in keys}
    return [shuffled(entry, dice) for entry in value] if isinstance(value, list) else value


@given(ir=blueprints(), seed=st.integers(0, 2**16))
@settings(max_examples=80, deadline=None)
def test_the_digest_does_not_depend_on_the_order_of_fields_nor_on_spaces(ir: BlueprintIR, seed: int) -> None:
    text = json.dumps(shuffled(ir.to_json(), random.Random(seed)), indent=3)
    again = BlueprintIR.from_json(text)
    assert again == ir
    assert again.canonical() == ir.canonical()
    assert again.digest == ir.digest


def test_a_default_that_is_written_out_is_the_same_design() -> None:
    short = {"layout": "features", "channels": 2, "output": "a", "nodes": [
        {"id": "a", "op": "linear", "inputs": ["input"], "attrs": {"out": 2}},
    ]}  # fmt: skip
    whole = json.loads(json.dumps(short))
    whole["nodes"][0]["attrs"] = {"init": "standard", "bias": True, "out": 2}
    assert BlueprintIR.from_json(short).digest == BlueprintIR.from_json(whole).digest


def test_a_whole_number_and_minus_zero_are_written_as_one_float() -> None:
    def scaled(value: float) -> BlueprintIR:
        node = {"id": "s", "op": "scale", "inputs": ["input"], "attrs": {"value": value}}
        return BlueprintIR.from_json({"layout": "features", "channels": 1, "nodes": [node], "output": "s"})

    assert scaled(2).canonical() == scaled(2.0).canonical()
    assert scaled(-0.0).canonical() == scaled(0).canonical()


CHANGES: dict[str, tuple[str, str]] = {
    "a width": ('"out":3', '"out":5'),
    "a bias": ('"bias":false', '"bias":true'),
    "an operation": ('"op":"relu"', '"op":"gelu"'),
    "a start": ('"init":"standard"', '"init":"zero"'),
    "a node's id, which names its weights": ("up", "rise"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_what_is_computed_or_stored_changes_the_digest(change: str) -> None:
    old, new = CHANGES[change]
    text = CANONICAL.decode()
    assert old in text
    assert BlueprintIR.from_json(text.replace(old, new)).digest != known().digest


def test_equal_designs_for_different_extents_are_one_blueprint() -> None:
    small = REGISTRY.build("gated_conv", Site(Layout.CHANNELS_2D, 8, (4, 4)))
    large = REGISTRY.build("gated_conv", Site(Layout.CHANNELS_2D, 8, (32, 32)))
    assert small.digest == large.digest
