"""What is told of a text: every fault with its place, and nothing that only follows from another."""

import json

from hypothesis import HealthCheck, given, settings

from esper.errors import InvalidBlueprint
from esper.ir import BlueprintIR, Severity, check_birth
from esper.ir.diagnosis import diagnose
from esper.ir.places import places_of
from esper.testing.blueprints import blueprints
from esper.testing.hostile import Hostile, hostile

FAULTY = """{
  "layout": "channels_2d",
  "channels": 6,
  "nodes": [
    {"id": "up", "op": "conv", "inputs": ["input"], "attrs": {"out": 12, "kernal": 3}},
    {"id": "act", "op": "gelo", "inputs": ["up"]},
    {"id": "side", "op": "conv", "inputs": ["input"], "attrs": {"out": 6, "kernel": 4}},
    {"id": "down", "op": "conv", "inputs": ["act"], "attrs": {"out": 6, "kernel": 1, "init": "zero"}}
  ],
  "output": "dawn"
}"""


def test_several_faults_are_told_at_once_each_with_its_place_and_the_nearest_name() -> None:
    faults = diagnose(FAULTY).faults
    assert [(fault.line, fault.column, fault.finding.path) for fault in faults] == [
        (5, 74, "$.nodes[0].attrs.kernal"),
        (6, 19, "$.nodes[1].op"),
        (7, 75, "$.nodes[2].attrs.kernel"),
        (10, 3, "$.output"),
    ]
    advice = [fault.finding.todo for fault in faults]
    assert [name in told for name, told in zip(("'kernel'", "'gelu'", "", "'down'"), advice, strict=True)] == [True] * 4


def test_what_is_no_json_is_told_where_it_stops_being_it() -> None:
    (fault,) = diagnose('{\n  "layout": tokens\n}').faults
    assert (fault.line, fault.column, fault.finding.what) == (2, 13, "not JSON")


def test_a_dead_graft_is_told_at_the_node_that_is_dead() -> None:
    nodes = [
        {"id": "up", "op": "linear", "inputs": ["input"], "attrs": {"out": 8, "init": "zero"}},
        {"id": "down", "op": "linear", "inputs": ["up"], "attrs": {"out": 4, "init": "zero"}},
    ]
    text = json.dumps({"layout": "features", "channels": 4, "nodes": nodes, "output": "down"}, indent=1)
    found = diagnose(text)
    assert found.ir is not None
    assert not found.is_sound
    fault = found.faults[0]
    assert fault.finding.rule == "two-zero-factors"
    assert text.split("\n")[fault.line - 1][fault.column - 1] == "{"


@given(sent=hostile())
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_a_text_is_sound_exactly_where_the_store_would_take_it(sent: Hostile) -> None:
    source = sent.source
    text = source.decode("utf-8", "backslashreplace") if isinstance(source, bytes) else source
    if not isinstance(text, str):
        try:
            text = json.dumps(text)
        except ValueError:
            return  # an integer of more digits than are written
    found = diagnose(text)
    try:
        check_birth(BlueprintIR.from_json(text))
    except InvalidBlueprint:
        assert not found.is_sound
    else:
        assert found.is_sound
    lines = text.split("\n")
    for fault in found.faults:
        assert fault.finding.severity in Severity
        assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1


@given(ir=blueprints())
@settings(max_examples=30)
def test_every_value_of_a_document_has_its_place(ir: BlueprintIR) -> None:
    text = json.dumps(ir.to_json(), indent=2)
    places = places_of(text)
    for index, node in enumerate(ir.nodes):
        begin, end = places[f"$.nodes[{index}].id"]
        assert text[begin:end] == f'"id": "{node.id}"'
        begin, end = places[f"$.nodes[{index}]"]
        assert json.loads(text[begin:end])["op"] == node.op
