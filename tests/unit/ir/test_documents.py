"""Blueprints that somebody sent: every fault is refused with its JSON path and a reason."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from esper.errors import InvalidBlueprint
from esper.ir import CAPS, BlueprintIR, Caps, Layout

Document = dict[str, Any]


def document() -> Document:
    """Return linear 4 -> 8, gelu, linear 8 -> 4 as it would arrive; nothing but what has no default."""
    return {
        "layout": "features",
        "channels": 4,
        "nodes": [
            {"id": "up", "op": "linear", "inputs": ["input"], "attrs": {"out": 8}},
            {"id": "act", "op": "gelu", "inputs": ["up"]},
            {"id": "down", "op": "linear", "inputs": ["act"], "attrs": {"out": 4, "init": "zero"}},
        ],
        "output": "down",
    }


def image() -> Document:
    return {
        "layout": "channels_2d",
        "channels": 6,
        "nodes": [{"id": "c", "op": "conv", "inputs": ["input"], "attrs": {"out": 6, "kernel": 3}}],
        "output": "c",
    }


def edit(*steps: str | int, to: object, source: Callable[[], Document] = document) -> Document:
    """Return a document with one place changed."""
    changed = source()
    place: Any = changed
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = to
    return changed


def without(*steps: str | int) -> Document:
    changed = document()
    place: Any = changed
    for step in steps[:-1]:
        place = place[step]
    del place[steps[-1]]
    return changed


FAULTS: dict[str, tuple[object, str, str]] = {
    "a list instead of an object": ([], "$", "an object is needed"),
    "null": (None, "$", "it is null"),
    "a missing field": (without("layout"), "$", "'layout' is missing"),
    "an unknown field": (edit("chanels", to=4), "$.chanels", "Did you mean 'channels'?"),
    "an unknown layout": (edit("layout", to="tokns"), "$.layout", "Did you mean 'tokens'?"),
    "a layout that is a number": (edit("layout", to=2), "$.layout", "text is needed"),
    "channels as text": (edit("channels", to="4"), "$.channels", "an integer is needed"),
    "channels as a truth value": (edit("channels", to=True), "$.channels", "it is bool"),
    "no channels": (edit("channels", to=0), "$.channels", "from 1 to"),
    "a version of the future": (edit("version", to=2), "$.version", "this library reads version 1"),
    "a name with a slash": (edit("name", to="a/b"), "$.name", "a name is"),
    "nodes as an object": (edit("nodes", to={}), "$.nodes", "a list is needed"),
    "a node that is text": (edit("nodes", 1, to="gelu"), "$.nodes[1]", "an object is needed"),
    "a node without inputs": (without("nodes", 1, "inputs"), "$.nodes[1]", "'inputs' is missing"),
    "a node with an unknown field": (edit("nodes", 1, "weight", to=1), "$.nodes[1].weight", "unknown field"),
    "an input that is a number": (edit("nodes", 1, "inputs", to=[0]), "$.nodes[1].inputs[0]", "text is needed"),
    "seventeen inputs": (edit("nodes", 1, "inputs", to=["up"] * 17), "$.nodes[1].inputs", "no operation takes 17"),
    "two inputs where one is taken": (
        edit("nodes", 1, "inputs", to=["up", "up"]), "$.nodes[1].inputs", "takes 1 inputs, not 2",
    ),
    "an input from the future": (
        edit("nodes", 0, "inputs", to=["down"]), "$.nodes[0].inputs[0]", "so that there is no cycle",
    ),
    "an input that is misspelt": (edit("nodes", 1, "inputs", to=["upp"]), "$.nodes[1].inputs[0]", "Did you mean 'up'?"),
    "an operation outside of the set": (edit("nodes", 1, "op", to="gelo"), "$.nodes[1].op", "Did you mean 'gelu'"),
    "an id with a capital": (edit("nodes", 1, "id", to="Act"), "$.nodes[1].id", "a small letter"),
    "an id that a module needs": (edit("nodes", 1, "id", to="forward"), "$.nodes[1].id", "the name is taken"),
    "an id twice": (edit("nodes", 1, "id", to="up"), "$.nodes[1].id", "appears twice"),
    "an attribute outside of the set": (
        edit("nodes", 0, "attrs", "outs", to=8), "$.nodes[0].attrs.outs", "Did you mean 'out'?",
    ),
    "an attribute that is missing": (edit("nodes", 0, "attrs", to={}), "$.nodes[0].attrs", "needs the attribute 'out'"),
    "an attribute that is null": (edit("nodes", 0, "attrs", "out", to=None), "$.nodes[0].attrs.out", "it is null"),
    "a width as a float": (edit("nodes", 0, "attrs", "out", to=8.0), "$.nodes[0].attrs.out", "an integer is needed"),
    "a width of zero": (edit("nodes", 0, "attrs", "out", to=0), "$.nodes[0].attrs.out", "it must lie in 1.."),
    "a width of a thousand digits": (
        edit("nodes", 0, "attrs", "out", to=10**1000), "$.nodes[0].attrs.out", "an integer of 3322 bits",
    ),
    "a bias that is a number": (
        edit("nodes", 0, "attrs", "bias", to=1), "$.nodes[0].attrs.bias", "true or false is needed",
    ),
    "an unknown start": (
        edit("nodes", 0, "attrs", "init", to="ones"), "$.nodes[0].attrs.init", "one of standard, zero",
    ),
    "an even kernel": (edit("nodes", 0, "attrs", "kernel", to=4, source=image), "$.nodes[0].attrs.kernel", "odd"),
    "groups that do not divide": (
        edit("nodes", 0, "attrs", "groups", to=4, source=image), "$.nodes[0].attrs.groups", "do not divide 6 channels",
    ),
    "an operation of another layout": (edit("layout", to="tokens", source=image), "$.nodes[0].op", "works on channels_1d"),
    "an output that is no node": (edit("output", to="dawn"), "$.output", "Did you mean 'down'"),
    "an output of another width": (edit("output", to="act"), "$.output", "8 channels"),
    "a node that leads nowhere": (
        edit("nodes", to=[*document()["nodes"], {"id": "idle", "op": "tanh", "inputs": ["up"]}]),
        "$.nodes[3]",
        "leads nowhere",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_document_is_refused_where_the_fault_is(fault: str) -> None:
    source, path, reason = FAULTS[fault]
    for sent in (source, json.dumps(source)):
        with pytest.raises(InvalidBlueprint) as refused:
            BlueprintIR.from_json(sent)
        assert refused.value.path == path
        assert reason in str(refused.value)
        assert refused.value.code == "ESP-3100"


TEXTS: dict[str, tuple[str | bytes, str, str]] = {
    "no JSON": ("{", "$", "not JSON"),
    "bytes that are no text": (b"\xff", "$", "not JSON"),
    "a hundred thousand brackets": ("[" * 100_000, "$", "not JSON"),
    "a repeated field": (
        json.dumps(document()).replace('"channels": 4', '"channels": 4, "channels": 5'),
        "$.channels",
        "which one counts",
    ),
    "a repeated field within a node": (
        json.dumps(document()).replace('"op": "gelu"', '"op": "gelu", "op": "relu"'),
        "$.nodes[1].op",
        "which one counts",
    ),
}


@pytest.mark.parametrize("fault", TEXTS)
def test_a_faulty_text_is_refused(fault: str) -> None:
    source, path, reason = TEXTS[fault]
    with pytest.raises(InvalidBlueprint, match=reason) as refused:
        BlueprintIR.from_json(source)
    assert refused.value.path == path


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_constant_that_is_not_finite_is_refused(number: str) -> None:
    scaled = {"layout": "features", "channels": 1, "output": "s"}
    text = json.dumps({**scaled, "nodes": [{"id": "s", "op": "scale", "inputs": ["input"], "attrs": {"value": 7}}]})
    with pytest.raises(InvalidBlueprint, match="must be finite") as refused:
        BlueprintIR.from_json(text.replace("7", number))
    assert refused.value.path == "$.nodes[0].attrs.value"


# Each cap, a document just within it, and one just beyond.
def chain(length: int) -> Document:
    ids = ["input", *(f"t{index}" for index in range(length))]
    nodes = [{"id": ids[n + 1], "op": "tanh", "inputs": [ids[n]]} for n in range(length)]
    return {"layout": "features", "channels": 2, "nodes": nodes, "output": ids[-1]}


def power(squarings: int, then: str = "relu") -> Document:
    ids = ["input", *(f"t{index}" for index in range(squarings))]
    nodes = [{"id": ids[n + 1], "op": "mul", "inputs": [ids[n]] * 2} for n in range(squarings)]
    nodes += [{"id": "then", "op": then, "inputs": ids[-1:]}, {"id": "last", "op": "mul", "inputs": ["then"] * 2}]
    return {"layout": "features", "channels": 2, "nodes": nodes, "output": "last"}


def wide(width: int) -> Document:
    return edit("nodes", to=[
        {"id": "up", "op": "linear", "inputs": ["input"], "attrs": {"out": width, "bias": False}},
        {"id": "down", "op": "linear", "inputs": ["up"], "attrs": {"out": 4, "bias": False}},
    ])  # fmt: skip


LIMITS: dict[str, tuple[Caps, Document, Document, str]] = {
    "nodes": (Caps(nodes=3), chain(3), chain(4), "4 nodes; the cap is 3"),
    "depth": (Caps(depth=3), chain(3), chain(4), "4 operations on the longest path; the cap is 3"),
    "factors": (Caps(factors=8), power(2), power(3), "16 factors of one value; the cap is 8"),
    "channels": (Caps(channels=8), wide(8), wide(9), "9 channels; the cap is 8"),
    "params": (Caps(params=64), wide(8), wide(9), "72 parameters; the cap is 64"),
    "flops": (Caps(flops_per_position=128), wide(8), wide(9), "144 FLOPs per position; the cap is 128"),
}


@pytest.mark.parametrize("cap", LIMITS)
def test_a_cap_lets_through_what_reaches_it_and_refuses_what_exceeds_it(cap: str) -> None:
    caps, within, beyond, reason = LIMITS[cap]
    BlueprintIR.from_json(within, caps=caps)
    with pytest.raises(InvalidBlueprint, match=reason):
        BlueprintIR.from_json(beyond, caps=caps)


@pytest.mark.parametrize("op", ["tanh", "sigmoid", "rms_norm", "layer_norm"])
def test_what_keeps_values_at_an_ordinary_size_is_one_factor(op: str) -> None:
    BlueprintIR.from_json(power(3, then=op), caps=Caps(factors=8))


def test_a_text_beyond_its_cap_is_refused_unread() -> None:
    with pytest.raises(InvalidBlueprint, match="bytes of JSON; the cap is 262144"):
        BlueprintIR.from_json("{" * (CAPS.json_bytes + 1))


def test_the_outermost_caps_stop_a_resource_bomb_before_anything_is_built() -> None:
    bomb = edit("nodes", to=[
        {"id": "up", "op": "linear", "inputs": ["input"], "attrs": {"out": 65_536}},
        {"id": "on", "op": "linear", "inputs": ["up"], "attrs": {"out": 65_536}},
        {"id": "down", "op": "linear", "inputs": ["on"], "attrs": {"out": 4}},
    ])  # fmt: skip
    with pytest.raises(InvalidBlueprint, match=f"parameters; the cap is {2**28}"):
        BlueprintIR.from_json(bomb)
    with pytest.raises(InvalidBlueprint, match="too many nodes"):
        BlueprintIR.from_json(chain(CAPS.nodes + 1))


def test_attributes_that_are_left_out_take_their_defaults() -> None:
    ir = BlueprintIR.from_json(document())
    assert (ir.name, ir.version, ir.layout, ir.channels, ir.output) == ("unnamed", 1, Layout.FEATURES, 4, "down")
    assert dict(ir.nodes[0].attrs) == {"bias": True, "init": "standard", "out": 8}
    assert dict(ir.nodes[1].attrs) == {}
    assert dict(ir.nodes[2].attrs) == {"bias": True, "init": "zero", "out": 4}


def test_what_is_written_is_read_back_equal() -> None:
    ir = BlueprintIR.from_json({**document(), "name": "my.block-1"})
    again = BlueprintIR.from_json(json.dumps(ir.to_json()))
    assert again == ir
    assert again.name == "my.block-1"
    assert again.to_json() == ir.to_json()


def test_reading_changes_nothing_of_what_was_given() -> None:
    source = document()
    before = copy.deepcopy(source)
    BlueprintIR.from_json(source)
    assert source == before
