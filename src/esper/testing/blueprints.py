"""Hypothesis strategies for blueprints: random designs, weights and inputs, for whoever tests an interpreter of them."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from esper.errors import InvalidBlueprint
from esper.ir import BlueprintIR, Graph, Handle, Layout, ops
from esper.ir.types import Node, Reads

Array = NDArray[np.float64]

_SMOOTH = ("gelu", "silu", "sigmoid", "tanh")
# Operations with weights and attention are where mistakes hide.
_WEIGHTS = {"linear": 5, "conv": 5, "attention": 4, "add": 2, "mul": 2}
_PADDINGS = ("zeros", "reflect", "replicate", "circular")
SHORTEST_EXTENT = 5
"""Every padding that is drawn fits extents from here."""


@st.composite
def blueprints(
    draw: st.DrawFn, layouts: Sequence[Layout] = tuple(Layout), max_nodes: int = 9, zeros: bool = True
) -> BlueprintIR:
    """Draw a valid blueprint of built-in operations; most are no good as grafts.

    Args:
        draw: Given by hypothesis.
        layouts: Layouts to choose from.
        max_nodes: Operations drawn before the output is fitted to the input's width.
        zeros: Whether weights may start at zero.

    Returns:
        The blueprint. Its extents must be at least `SHORTEST_EXTENT`.
    """
    graph = Graph(draw(st.sampled_from(layouts)), draw(st.integers(1, 6)))
    values = [graph.input]
    for _ in range(draw(st.integers(min(3, max_nodes), max_nodes))):
        values.append(_grown(draw, graph, values, zeros))
    output = values[-1]
    if output.channels != graph.input.channels:
        output = graph.pointwise(output, out=graph.input.channels, init=_init(draw, zeros))
    return needed_only(graph, _at_each_position(graph, output))


@st.composite
def newborns(draw: st.DrawFn, layouts: Sequence[Layout] = tuple(Layout)) -> BlueprintIR:
    """Draw a blueprint whose last operation is a zero factor: neutral at birth, though perhaps not alive in every part.

    One that reads what enters a module may give another number of channels than it takes.
    """
    reads = draw(st.sampled_from(Reads))
    graph = Graph(draw(st.sampled_from(layouts)), draw(st.integers(1, 6)), reads)
    values = [graph.input]
    for _ in range(draw(st.integers(1, 7))):
        values.append(_grown(draw, graph, values, zeros=False))
    leaving = graph.input.channels if reads is Reads.OUTPUT else draw(st.integers(1, 6))
    last = graph.pointwise(values[-1], out=leaving, init="zero")
    return needed_only(graph, _at_each_position(graph, last))


def _at_each_position(graph: Graph, output: Handle) -> Handle:
    if not output.pooled:
        return output
    alike = output.channels == graph.input.channels
    return graph.mul(graph.input if alike else graph.pointwise(graph.input, out=output.channels), output)


def may_be_dead(ir: BlueprintIR) -> bool:
    """Say whether a design may be dead although the static rules, made for generic values, let it live.

    A relu can be shut for every input, a norm after a norm or of few channels has next to nothing left to do, as has a mean over
    positions after a norm over them, and a high power leaves gradients of all sizes.
    """
    ops = [node.op for node in ir.nodes]
    narrow = any(node.op.endswith("norm") and min(use.inputs) <= 2 for node, use in zip(ir.nodes, ir.uses, strict=True))
    levels = sum(op.endswith("norm") for op in ops) + ops.count("position_mean")
    return narrow or levels > 1 or "relu" in ops or ops.count("mul") > 1


SIGNS_OF_DEATH = ("is dead", "has no gradient", "the loss")
"""What the forge says of such a design, and of nothing else."""


def needed_only(graph: Graph, output: Handle) -> BlueprintIR:
    """Finish a graph of which parts may lead nowhere: those are left out."""
    needed, kept = {output.id}, list[Node]()
    for node in reversed(graph.nodes):
        if node.id in needed:
            needed.update(node.inputs)
            kept.insert(0, node)
    return BlueprintIR("drawn", graph.layout, graph.input.channels, tuple(kept), output.id, reads=graph.reads)


def random_weights(ir: BlueprintIR, seed: int) -> dict[str, Array]:
    """Return generic weights: nothing is zero, and running variances are positive.

    Args:
        ir: The blueprint.
        seed: Seed of the numbers.
    """
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0.0, 0.7, spec.shape) for name, spec in ir.tensors.items()}
    return {name: np.abs(value) + 0.3 if name.endswith("running_var") else value for name, value in weights.items()}


def random_input(ir: BlueprintIR, *, batch: int, extent: int, seed: int) -> Array:
    """Return an input in the blueprint's layout; image maps are one longer than wide.

    Args:
        ir: The blueprint.
        batch: Number of examples.
        extent: Size of the first position axis.
        seed: Seed of the numbers.
    """
    return np.random.default_rng(seed).normal(size=input_shape(ir, batch, extent))


def input_shape(ir: BlueprintIR, batch: int, extent: int) -> tuple[int, ...]:
    """Return the shape of such an input."""
    extents = tuple(extent + axis for axis in range(ir.layout.rank))
    if ir.layout.is_channels_first:
        return (batch, ir.channels, *extents)
    return (batch, *extents, ir.channels)


def _grown(draw: st.DrawFn, graph: Graph, values: Sequence[Handle], zeros: bool) -> Handle:
    """Add one operation; where the drawn one does not fit, a nonlinearity."""
    known = [name for name in ops.names() if ops.get(name).trusted and graph.layout in ops.get(name).layouts]
    op = draw(st.sampled_from([name for name in known for _ in range(_WEIGHTS.get(name, 1))]))
    # Mostly the newest value, so that designs grow deep and little of them leads nowhere.
    first = values[-1] if draw(st.booleans()) else draw(st.sampled_from(values))
    alike = [value for value in values if value.channels == first.channels]
    inputs = [first, *(draw(st.sampled_from(alike)) for _ in range(ops.get(op).arity - 1))]
    try:
        return graph.apply(op, *inputs, attrs=_attrs(draw, op, first.channels, zeros))
    except InvalidBlueprint:
        return graph.apply(draw(st.sampled_from(_SMOOTH)), values[-1])


def _attrs(draw: st.DrawFn, op: str, channels: int, zeros: bool) -> dict[str, bool | int | float | str]:
    if op == "linear":
        return {"out": draw(st.integers(1, 6)), "bias": draw(st.booleans()), "init": _init(draw, zeros)}
    if op == "conv":
        groups = _divisor(draw, channels)
        return {
            "out": groups * draw(st.integers(1, 3)),
            "kernel": draw(st.sampled_from((1, 3, 5))),
            "groups": groups,
            "dilation": draw(st.integers(1, 2)),
            "padding_mode": draw(st.sampled_from(_PADDINGS)),
            "bias": draw(st.booleans()),
            "init": _init(draw, zeros),
        }
    if op == "group_norm":
        return {"groups": _divisor(draw, channels)}
    if op == "scale":
        return {"value": draw(st.floats(0.25, 2.0)) * draw(st.sampled_from((-1.0, 1.0)))}
    if op == "attention":
        return {"heads": _divisor(draw, channels), "causal": draw(st.booleans())}
    return {}


def _divisor(draw: st.DrawFn, number: int) -> int:
    return draw(st.sampled_from([size for size in range(1, number + 1) if number % size == 0]))


def _init(draw: st.DrawFn, zeros: bool) -> str:
    return draw(st.sampled_from(("standard", "standard", "zero"))) if zeros else "standard"
