"""From JSON that somebody sent to typed fields, with the path of whatever is wrong."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from esper.errors import InvalidBlueprint
from esper.ir import ops
from esper.ir.caps import Caps
from esper.ir.names import LONGEST_SHOWN, shown
from esper.ir.types import Attr, Attrs, Layout, Node, Reads

_DOCUMENT = frozenset({"name", "version", "layout", "channels", "reads", "nodes", "output"})
_OPTIONAL = frozenset({"name", "version", "reads"})
_NODE = frozenset({"id", "op", "inputs", "attrs"})
_MAX_INPUTS = 16
UNNAMED = "unnamed"


@dataclass(frozen=True)
class Document:
    """The fields of a blueprint, of the right types but not yet checked against each other."""

    name: str
    version: int
    layout: Layout
    channels: int
    reads: Reads
    nodes: tuple[Node, ...]
    output: str


class _Repeated(dict[str, object]):
    """A JSON object in which a key appeared twice."""

    key: str


def parsed(source: object, caps: Caps) -> Document:
    """Read a blueprint's JSON.

    Args:
        source: Text, bytes or the parsed object.
        caps: Limits on bytes and nodes, heeded before anything is built.

    Returns:
        Its fields.

    Raises:
        InvalidBlueprint: If it is not JSON, too long, or has a missing, unknown, repeated or mistyped field.
    """
    value = loaded(source, caps) if isinstance(source, str | bytes) else source
    fields = _object(value, "$", _DOCUMENT, required=_DOCUMENT - _OPTIONAL)
    return Document(
        name=_text(fields.get("name", UNNAMED), "$.name"),
        version=_integer(fields.get("version", 1), "$.version"),
        layout=_layout(fields["layout"]),
        channels=_integer(fields["channels"], "$.channels"),
        reads=_reads(fields.get("reads", Reads.OUTPUT.value)),
        nodes=_nodes(fields["nodes"], caps),
        output=_text(fields["output"], "$.output"),
    )


def loaded(source: str | bytes, caps: Caps) -> object:
    """Return the object that a text holds.

    Raises:
        InvalidBlueprint: If it is not JSON, or too long; the cause tells where.
    """
    size = len(source)
    if size > caps.json_bytes:
        raise InvalidBlueprint("too long", path="$", why=f"{size} bytes of JSON; the cap is {caps.json_bytes}")
    try:
        text = source.decode() if isinstance(source, bytes) else source
        loaded: object = json.loads(text, object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as wrong:
        raise InvalidBlueprint("not JSON", path="$", why=str(wrong)) from wrong
    return loaded


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object, and remember a key that appeared twice until its path is known."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    seen: set[str] = set()
    repeated = _Repeated(fields)
    repeated.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return repeated


def _nodes(value: object, caps: Caps) -> tuple[Node, ...]:
    if not isinstance(value, list):
        _mistyped(value, "$.nodes", "a list")
    if len(value) > caps.nodes:
        raise InvalidBlueprint("too many nodes", path="$.nodes", why=f"{len(value)} nodes; the cap is {caps.nodes}")
    return tuple(checked_node(entry, f"$.nodes[{index}]") for index, entry in enumerate(value))


def checked_head(value: object) -> Iterator[InvalidBlueprint]:
    """Return what is wrong with the fields of a blueprint, each for itself."""
    fields: dict[str, object] = value if isinstance(value, dict) else {}
    checks: tuple[Callable[[], object], ...] = (
        lambda: _object(value, "$", _DOCUMENT, required=_DOCUMENT - _OPTIONAL),
        lambda: _layout(fields.get("layout", Layout.FEATURES.value)),
        lambda: _integer(fields.get("channels", 1), "$.channels"),
        lambda: _reads(fields.get("reads", Reads.OUTPUT.value)),
        lambda: _integer(fields.get("version", 1), "$.version"),
        lambda: _text(fields.get("name", UNNAMED), "$.name"),
        lambda: _text(fields.get("output", UNNAMED), "$.output"),
    )
    for check in checks:
        try:
            check()
        except InvalidBlueprint as error:
            yield error


def checked_node(value: object, path: str) -> Node:
    """Return a node, its fields of the right types.

    Raises:
        InvalidBlueprint: If a field is missing, unknown, repeated or mistyped.
    """
    fields = _object(value, path, _NODE, required=_NODE - {"attrs"})
    inputs = fields["inputs"]
    if not isinstance(inputs, list):
        _mistyped(inputs, f"{path}.inputs", "a list of ids")
    if len(inputs) > _MAX_INPUTS:
        raise InvalidBlueprint("too many inputs", path=f"{path}.inputs", why=f"no operation takes {len(inputs)}")
    return Node(
        id=_text(fields["id"], f"{path}.id"),
        op=_text(fields["op"], f"{path}.op"),
        inputs=tuple(_text(entry, f"{path}.inputs[{index}]") for index, entry in enumerate(inputs)),
        attrs=_attrs(fields.get("attrs", {}), f"{path}.attrs"),
    )


def _attrs(value: object, path: str) -> Attrs:
    fields = _object(value, path, None)
    attrs: dict[str, Attr] = {}
    for name, held in fields.items():
        if not isinstance(held, bool | int | float | str):
            _mistyped(held, f"{path}.{shown(name)}", "a number, a word, true or false")
        attrs[name] = held
    return Attrs(attrs)


def _object(
    value: object, path: str, known: frozenset[str] | None, *, required: frozenset[str] = frozenset()
) -> dict[str, object]:
    if not isinstance(value, dict):
        _mistyped(value, path, "an object")
    if isinstance(value, _Repeated):
        where = f"{path}.{shown(value.key)}"
        raise InvalidBlueprint("repeated field", path=where, why="which one counts is unclear")
    for name in value:
        if not isinstance(name, str):
            _mistyped(name, path, "an object with text for keys")
        if known is not None and name not in known:
            near = ops.near(name[:LONGEST_SHOWN], known)
            raise InvalidBlueprint(f"unknown field '{shown(name)}'", path=f"{path}.{shown(name)}", todo=near)
    for name in sorted(required - value.keys()):
        raise InvalidBlueprint(f"the field {name!r} is missing", path=path, todo="Add it.")
    return value


def _layout(value: object) -> Layout:
    return Layout(_word(value, "layout", [layout.value for layout in Layout]))


def _reads(value: object) -> Reads:
    return Reads(_word(value, "reads", [reads.value for reads in Reads]))


def _word(value: object, field: str, known: list[str]) -> str:
    text = _text(value, f"$.{field}")
    if text not in known:
        raise InvalidBlueprint(f"unknown {field} {text[:80]!r}", path=f"$.{field}", todo=ops.near(text[:80], known))
    return text


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        _mistyped(value, path, "text")
    return value


def _integer(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        _mistyped(value, path, "an integer")
    return value


def _mistyped(value: object, path: str, wanted: str) -> NoReturn:
    found = "null" if value is None else type(value).__name__
    raise InvalidBlueprint(f"{wanted} is needed", path=path, why=f"it is {found}")
