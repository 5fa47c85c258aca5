"""The rules that make a list of nodes a blueprint: names, order, attributes, shapes, caps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from esper.errors import InvalidBlueprint, NotFound
from esper.ir import ops
from esper.ir.attributes import RuleBroken
from esper.ir.birth import Product, Use
from esper.ir.caps import Caps
from esper.ir.names import ID_RULE, RESERVED_IDS, is_node_id, shown
from esper.ir.spec import OpSpec
from esper.ir.types import INPUT, Attr, Attrs, Layout, Node


class Form(NamedTuple):
    """What is known of a value before anything is computed.

    Attributes:
        channels: Its width.
        pooled: Whether it has one position for all, as a mean over them has.
    """

    channels: int
    pooled: bool = False


def completed_node(
    node: Node, index: int, known: Mapping[str, Form], layout: Layout, caps: Caps
) -> tuple[Node, Use, Form]:
    """Check one node against the nodes before it.

    Args:
        node: The node; attributes may be left out where they have defaults.
        index: Its position, for the JSON path.
        known: Every value before it, by id.
        layout: Layout of the blueprint.
        caps: Limits.

    Returns:
        The node with all its attributes, its place, and the form of its output.

    Raises:
        InvalidBlueprint: If it breaks a rule; the error has the JSON path.
    """
    path = f"$.nodes[{index}]"
    _check_id(node, path, known)
    spec = spec_of(node, path)
    attrs = _attrs(node, spec, path)
    inputs = _inputs(node, spec, path, known)
    if layout not in spec.layouts:
        raise InvalidBlueprint(
            f"operation {spec.name!r} does not work on {layout}",
            path=f"{path}.op",
            why=f"it works on {', '.join(sorted(spec.layouts))}",
        )
    use = Use(layout, tuple(form.channels for form in inputs), attrs, tuple(form.pooled for form in inputs))
    return replace(node, attrs=attrs), use, _output(use, spec, path, caps)


def _check_id(node: Node, path: str, known: Mapping[str, Form]) -> None:
    if not isinstance(node.id, str) or not is_node_id(node.id):
        reserved = isinstance(node.id, str) and node.id in RESERVED_IDS
        why = "the name is taken by the module that holds the nodes" if reserved else f"an id is {ID_RULE}"
        raise InvalidBlueprint(f"bad node id {str(node.id)[:80]!r}", path=f"{path}.id", why=why)
    if node.id in known:
        raise InvalidBlueprint(f"node id {node.id!r} appears twice", path=f"{path}.id", todo="Give each node its own.")


def spec_of(node: Node, path: str) -> OpSpec:
    """Return the operation that a node names.

    Raises:
        InvalidBlueprint: If there is none.
    """
    try:
        return ops.get(node.op)
    except NotFound as unknown:
        raise InvalidBlueprint(
            f"unknown operation {str(node.op)[:80]!r}", path=f"{path}.op", why=unknown.why, todo=unknown.todo
        ) from unknown


def _attrs(node: Node, spec: OpSpec, path: str) -> Attrs:
    for name in node.attrs:
        if name not in spec.attrs:
            raise InvalidBlueprint(
                f"operation {spec.name!r} has no attribute {str(name)[:80]!r}",
                path=f"{path}.attrs.{shown(name)}",
                todo=ops.near(str(name)[:80], spec.attrs),
            )
    complete: dict[str, Attr] = {}
    for name, rule in spec.attrs.items():
        value = node.attrs.get(name, rule.default)
        if value is None:
            raise InvalidBlueprint(f"operation {spec.name!r} needs the attribute {name!r}", path=f"{path}.attrs")
        try:
            complete[name] = rule.parse(value)
        except RuleBroken as wrong:
            raise InvalidBlueprint(f"bad {name!r}", path=f"{path}.attrs.{name}", why=wrong.why) from wrong
    return Attrs(complete)


def _inputs(node: Node, spec: OpSpec, path: str, known: Mapping[str, Form]) -> tuple[Form, ...]:
    if len(node.inputs) != spec.arity:
        raise InvalidBlueprint(
            f"operation {spec.name!r} takes {spec.arity} inputs, not {len(node.inputs)}", path=f"{path}.inputs"
        )
    for position, source in enumerate(node.inputs):
        if source not in known:
            raise InvalidBlueprint(
                f"input {str(source)[:80]!r} is not known here",
                path=f"{path}.inputs[{position}]",
                why="a node may use 'input' and the nodes before it, so that there is no cycle",
                todo=ops.near(str(source)[:80], known),
            )
    return tuple(known[source] for source in node.inputs)


def _output(use: Use, spec: OpSpec, path: str, caps: Caps) -> Form:
    try:
        form = Form(spec.width(use), spec.pooled(use))
    except RuleBroken as broken:
        where = f"{path}.attrs.{broken.attr}" if broken.attr else f"{path}.inputs"
        raise InvalidBlueprint(f"operation {spec.name!r} does not fit", path=where, why=broken.why) from broken
    if form.channels > caps.channels:
        raise InvalidBlueprint("too wide", path=path, why=f"{form.channels} channels; the cap is {caps.channels}")
    return form


def check_reach(nodes: tuple[Node, ...], output: str) -> None:
    """Refuse nodes that the output does not need.

    Raises:
        InvalidBlueprint: If there is one.
    """
    needed = {output}
    for node in reversed(nodes):
        if node.id in needed:
            needed.update(node.inputs)
    for index, node in enumerate(nodes):
        if node.id not in needed:
            raise InvalidBlueprint(
                f"node {node.id!r} leads nowhere",
                path=f"$.nodes[{index}]",
                why="the output does not depend on it",
                todo="Use it or remove it.",
            )


def factors_of(nodes: tuple[Node, ...]) -> int:
    """Return the most values of ordinary size that one value is a product of."""
    factors = {INPUT: 1}
    for node in nodes:
        held = [factors[source] for source in node.inputs]
        spec = ops.get(node.op)
        found = sum(held) if isinstance(spec.birth, Product) else max(held, default=1)
        factors[node.id] = 1 if spec.bounding else found
    return max(factors.values())


def depth_of(nodes: tuple[Node, ...]) -> int:
    """Return the number of operations on the longest path."""
    depths = {INPUT: 0}
    for node in nodes:
        depths[node.id] = 1 + max((depths[source] for source in node.inputs), default=0)
    return max(depths.values())
