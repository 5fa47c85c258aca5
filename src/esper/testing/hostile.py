"""Hypothesis strategies for blueprints that somebody sends to do harm: one sound design, and one thing done to it.

A mutation knows the structure that it breaks, so that most of them get past the first check. Some leave the design sound.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from hypothesis import strategies as st

from esper.ir import CAPS, INPUT, Layout, ops
from esper.testing.blueprints import newborns

Document: TypeAlias = dict[str, Any]
Source: TypeAlias = Document | str | bytes | object
Mutation: TypeAlias = Callable[[st.DrawFn, Document], Source]

_SIZES = (-1, 0, 1, 2, CAPS.channels, CAPS.channels + 1, 2**31, 2**63, 2**64, 10**400)
_CONSTANTS = (float("nan"), float("inf"), -float("inf"), -0.0, 5e-324, 1e-30, 1e6, 1e308, 10**400, 0)
_STRANGE = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202eevil",
    "ａｄｄ",
    "a\u0301",
    "\U0001f525",
    "__class__",
    "../../etc",
    "a\nb",
)
_VALUES: tuple[Source, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    float("nan"),
    "",
    "input",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    ["input"] * 20,
)
_MANY = (CAPS.depth - 1, CAPS.depth, CAPS.depth + 1, CAPS.nodes, CAPS.nodes + 1, 3000)
_LONG = (64, 128, 129, 5_000, CAPS.json_bytes + 1)
_DEEP = (10, 500, 5_000, 100_000)


@dataclass(frozen=True)
class Hostile:
    """What somebody sends.

    Attributes:
        kind: The mutation, a key of `MUTATIONS`.
        source: Text, bytes, or the parsed object.
    """

    kind: str
    source: Source


@st.composite
def hostile(draw: st.DrawFn) -> Hostile:
    """Draw a sound blueprint, and do one thing to its document, its text or its bytes."""
    document = draw(newborns()).to_json()
    kind = draw(st.sampled_from(sorted(MUTATIONS)))
    return Hostile(kind, MUTATIONS[kind](draw, document))


def _node(draw: st.DrawFn, document: Document) -> Document:
    node: Document = draw(st.sampled_from(document["nodes"]))
    return node


def _with_attr(draw: st.DrawFn, document: Document, name: str) -> Document:
    """Return a node that has an attribute, or any where none has."""
    having = [node for node in document["nodes"] if name in node["attrs"]]
    node: Document = draw(st.sampled_from(having or document["nodes"]))
    return node


def _wide(draw: st.DrawFn, document: Document) -> Source:
    size = draw(st.sampled_from(_SIZES))
    if draw(st.booleans()):
        return {**document, "channels": size}
    _with_attr(draw, document, "out")["attrs"]["out"] = size
    return document


def _deep(draw: st.DrawFn, document: Document) -> Source:
    """Put a chain before the output."""
    output = document["nodes"].pop()
    last = document["nodes"][-1]["id"] if document["nodes"] else INPUT
    for index in range(draw(st.sampled_from(_MANY))):
        document["nodes"].append({"id": f"chain{index}", "op": "tanh", "inputs": [last], "attrs": {}})
        last = f"chain{index}"
    document["nodes"].append({**output, "inputs": [last] * len(output["inputs"])})
    return document


def _doubling(draw: st.DrawFn, document: Document) -> Source:
    """Use each value twice, so that paths double with each node."""
    output = document["nodes"].pop()
    last = document["nodes"][-1]["id"] if document["nodes"] else INPUT
    op = draw(st.sampled_from(("add", "mul")))
    for index in range(draw(st.sampled_from((20, 60, CAPS.depth - 20)))):
        document["nodes"].append({"id": f"twice{index}", "op": op, "inputs": [last, last], "attrs": {}})
        last = f"twice{index}"
    document["nodes"].append({**output, "inputs": [last] * len(output["inputs"])})
    return document


def _circular(draw: st.DrawFn, document: Document) -> Source:
    ids = [node["id"] for node in document["nodes"]]
    node = _node(draw, document)
    node["inputs"][0] = draw(st.sampled_from([node["id"], ids[-1], document["output"], "output"]))
    return document


def _long_text(draw: st.DrawFn, document: Document) -> Source:
    long = draw(st.sampled_from(("a", "\U0001f525", "\\", '"'))) * draw(st.sampled_from(_LONG))
    return _named(draw, document, long)


def _strange_text(draw: st.DrawFn, document: Document) -> Source:
    return _named(draw, document, draw(st.sampled_from(_STRANGE)))


def _named(draw: st.DrawFn, document: Document, text: str) -> Source:
    """Put a text where a name belongs."""
    node = _node(draw, document)
    match draw(st.sampled_from(("name", "id", "op", "input", "attribute", "value", "field", "output"))):
        case "name":
            document["name"] = text
        case "id":
            node["id"] = text
        case "op":
            node["op"] = text
        case "input":
            node["inputs"][0] = text
        case "attribute":
            node["attrs"][text] = 1
        case "value":
            node["attrs"][draw(st.sampled_from(sorted(node["attrs"]) or ["out"]))] = text
        case "field":
            document[text] = 1
        case _:
            document["output"] = text
    return document


def _constant(draw: st.DrawFn, document: Document) -> Source:
    """Scale by something that is no number, or hardly one."""
    value = draw(st.sampled_from(_CONSTANTS))
    output = document["nodes"].pop()
    scale = {"id": "constant", "op": "scale", "inputs": output["inputs"][:1], "attrs": {"value": value}}
    document["nodes"] += [scale, {**output, "inputs": ["constant"] * len(output["inputs"])}]
    return json.dumps(document) if draw(st.booleans()) and abs(value) != 10**400 else document


def _repeated(draw: st.DrawFn, document: Document) -> Source:
    field = draw(st.sampled_from(("layout", "channels", "nodes", "output", "id", "op", "inputs", "attrs")))
    text = json.dumps(document)
    at = text.index(f'"{field}":')
    return f'{text[:at]}"{field}": {draw(st.sampled_from(("1", "null", "[]", json.dumps("input"))))}, {text[at:]}'


def _arity(draw: st.DrawFn, document: Document) -> Source:
    node = _node(draw, document)
    node["inputs"] = [draw(st.sampled_from([INPUT, *node["inputs"]]))] * draw(
        st.sampled_from((0, 1, 2, 3, 16, 17, 5_000))
    )
    return document


def _misfit(draw: st.DrawFn, document: Document) -> Source:
    """Change a width, a number of groups or heads, or a kernel, and nothing that depends on it."""
    name = draw(st.sampled_from(("out", "groups", "heads", "kernel", "dilation")))
    _with_attr(draw, document, name)["attrs"][name] = draw(st.integers(1, 9))
    return document


def _overflow(draw: st.DrawFn, document: Document) -> Source:
    """Let sizes that are each allowed multiply into one that no machine has."""
    channels, layout = document["channels"], document["layout"]
    op = "conv" if Layout(layout).is_channels_first else "linear"
    wide: Document = {"out": draw(st.sampled_from((4096, 32_768, CAPS.channels)))}
    end: Document = {"out": channels, "init": "zero"}
    if op == "conv":
        wide |= {"kernel": draw(st.sampled_from((1, 63))), "dilation": draw(st.sampled_from((1, 64)))}
        end |= {"kernel": 1}
    ids = [f"wide{index}" for index in range(draw(st.sampled_from((1, 2, 100))))]
    document["nodes"] = [
        {"id": one, "op": op, "inputs": [before], "attrs": wide}
        for one, before in zip(ids, [INPUT, *ids], strict=False)
    ]
    document["nodes"].append({"id": "end", "op": op, "inputs": ids[-1:], "attrs": end})
    return {**document, "output": "end"}


def _nested(draw: st.DrawFn, document: Document) -> Source:
    """Open more brackets than anybody counts."""
    depth, (opened, closed) = draw(st.sampled_from(_DEEP)), draw(st.sampled_from((("[", "]"), ('{"a":', "}"))))
    node = _node(draw, document)
    node[draw(st.sampled_from(("attrs", "inputs", "id")))] = "HERE"
    tail = "" if draw(st.booleans()) else closed * depth
    return json.dumps(document).replace('"HERE"', f"{opened * depth}0{tail}")


def _truncated(draw: st.DrawFn, document: Document) -> Source:
    data = json.dumps(document).encode()
    return data[: draw(st.integers(0, len(data)))]


def _flipped(draw: st.DrawFn, document: Document) -> Source:
    data = bytearray(json.dumps(document).encode())
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def _encoded(draw: st.DrawFn, document: Document) -> Source:
    text = json.dumps(document)
    coding = draw(st.sampled_from(("utf-16", "utf-8-sig", "utf-32", "cp037")))
    return draw(st.sampled_from((text.encode(coding), text + text, text + "\x00", "// note\n" + text)))


def _number(draw: st.DrawFn, document: Document) -> Source:
    """Write a number that JSON allows, or nearly."""
    written = draw(st.sampled_from(("1e999", "-1e999", "NaN", "0x10", "01", "1" * 5_000, "1.0", "-0", "1e2")))
    return json.dumps({**document, "channels": "HERE"}).replace('"HERE"', written)


def _retyped(draw: st.DrawFn, document: Document) -> Source:
    value = draw(st.sampled_from(_VALUES))
    if draw(st.booleans()):
        return {**document, draw(st.sampled_from(sorted(document))): value}
    node = _node(draw, document)
    where = draw(st.sampled_from((node, node["attrs"])))
    where[draw(st.sampled_from(sorted(where) or ["out"]))] = value
    return document


def _dropped(draw: st.DrawFn, document: Document) -> Source:
    where = draw(st.sampled_from((document, _node(draw, document))))
    del where[draw(st.sampled_from(sorted(where)))]
    return document


def _another_op(draw: st.DrawFn, document: Document) -> Source:
    _node(draw, document)["op"] = draw(st.sampled_from([name for name in ops.names() if ops.get(name).trusted]))
    return document


def _another_layout(draw: st.DrawFn, document: Document) -> Source:
    return {**document, "layout": draw(st.sampled_from([*map(str, Layout), "tokns"]))}


def _unborn(draw: st.DrawFn, document: Document) -> Source:
    """Break law 2 alone: no zero factor, or one too many."""
    node = _with_attr(draw, document, "init")
    if "init" in node["attrs"]:
        node["attrs"]["init"] = "standard" if node["attrs"]["init"] == "zero" else "zero"
    return document


def _idle(draw: st.DrawFn, document: Document) -> Source:
    """Add what leads nowhere."""
    document["nodes"].insert(
        draw(st.integers(0, len(document["nodes"]))), {"id": "idle", "op": "tanh", "inputs": [INPUT]}
    )
    return document


def _something_else(draw: st.DrawFn, document: Document) -> Source:
    texts: tuple[Source, ...] = ("", "null", b"", b"\xff", b"\x80\x04}.", "<svg/>", [document], 10**400)
    sent: Source = draw(st.sampled_from((*_VALUES, *texts)))
    return sent


MUTATIONS: dict[str, Mutation] = {
    "another layout": _another_layout,
    "another op": _another_op,
    "arity": _arity,
    "circular": _circular,
    "constant": _constant,
    "deep": _deep,
    "doubling": _doubling,
    "dropped": _dropped,
    "encoded": _encoded,
    "flipped": _flipped,
    "idle": _idle,
    "long text": _long_text,
    "misfit": _misfit,
    "nested": _nested,
    "number": _number,
    "overflow": _overflow,
    "repeated": _repeated,
    "retyped": _retyped,
    "something else": _something_else,
    "strange text": _strange_text,
    "truncated": _truncated,
    "unborn": _unborn,
    "wide": _wide,
}
"""What is done to a sound document, by name."""
