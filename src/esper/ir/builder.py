"""Drawing a blueprint: a graph whose methods are the operations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from esper.errors import EsperError, InvalidBlueprint
from esper.ir.caps import CAPS
from esper.ir.graph_check import Form, completed_node
from esper.ir.representation import BlueprintIR
from esper.ir.types import INPUT, Attr, Attrs, Layout, Node, Reads, Site


@dataclass(frozen=True, eq=False)
class Handle:
    """A value of a graph that is being drawn.

    Attributes:
        graph: The graph it belongs to.
        id: Id of the node that makes it.
        channels: Its width.
        pooled: Whether it has one position for all.
    """

    graph: "Graph"
    id: str
    channels: int
    pooled: bool = False

    def __add__(self, other: "Handle") -> "Handle":
        return self.graph.add(self, other)

    def __mul__(self, other: "Handle") -> "Handle":
        return self.graph.mul(self, other)

    def __repr__(self) -> str:
        return f"Handle({self.id!r}, channels={self.channels})"


class Graph:
    """A blueprint being drawn; a mistake is refused where it is made.

    Args:
        layout: Layout of every value.
        channels: Width of the input, and of an output that is added to it.
        reads: What the input is: what leaves a slot's module, or what enters it.
    """

    def __init__(self, layout: Layout, channels: int, reads: Reads = Reads.OUTPUT) -> None:
        self.layout, self.reads = layout, reads
        self.input = Handle(self, INPUT, channels)
        self._nodes: list[Node] = []
        self._forms = {INPUT: Form(channels)}
        self._counts: dict[str, int] = {}

    def apply(self, op: str, *inputs: Handle, attrs: Mapping[str, Attr] | None = None, id: str | None = None) -> Handle:
        """Use an operation by name, as for extensions.

        Args:
            op: Its name in the op table.
            *inputs: Its inputs.
            attrs: Its attributes; those left out take their defaults.
            id: Id of the node; by default the operation's name and a number.

        Returns:
            Its output.

        Raises:
            InvalidBlueprint: If a rule is broken.
        """
        index = len(self._nodes)
        for position, handle in enumerate(inputs):
            if not isinstance(handle, Handle) or handle.graph is not self:
                raise InvalidBlueprint(
                    f"input {handle!r} is not a value of this graph",
                    path=f"$.nodes[{index}].inputs[{position}]",
                    todo="Start from g.input and use what the methods of g return.",
                )
        node = Node(id or self._fresh_id(op), op, tuple(handle.id for handle in inputs), Attrs(attrs))
        node, _, self._forms[node.id] = completed_node(node, index, self._forms, self.layout, CAPS)
        self._nodes.append(node)
        return Handle(self, node.id, *self._forms[node.id])

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes drawn so far."""
        return tuple(self._nodes)

    def _fresh_id(self, op: str) -> str:
        stem = str(op).rpartition(".")[2]
        while True:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            if (name := f"{stem}{self._counts[stem]}") not in self._forms:
                return name

    def finish(self, output: Handle, name: str) -> BlueprintIR:
        """Return the blueprint whose F(x) is ``output``.

        Raises:
            InvalidBlueprint: If the output does not fit, or a node leads nowhere.
        """
        if not isinstance(output, Handle) or output.graph is not self:
            raise InvalidBlueprint(
                f"a blueprint returned {type(output).__name__}, not a value of its graph",
                path="$.output",
                todo="Return what a method of g returned.",
            )
        return BlueprintIR(name, self.layout, self.input.channels, tuple(self._nodes), output.id, reads=self.reads)

    def linear(
        self, x: Handle, *, out: int, bias: bool = True, init: str = "standard", id: str | None = None
    ) -> Handle:
        """Return W x + b over the last axis."""
        return self.apply("linear", x, attrs={"out": out, "bias": bias, "init": init}, id=id)

    def conv(
        self,
        x: Handle,
        *,
        out: int,
        kernel: int,
        groups: int = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
        bias: bool = True,
        init: str = "standard",
        id: str | None = None,
    ) -> Handle:
        """Return a convolution that keeps the extent; ``kernel`` is odd, and square for images."""
        attrs: dict[str, Attr] = {"out": out, "kernel": kernel, "groups": groups, "dilation": dilation}
        return self.apply("conv", x, attrs={**attrs, "padding_mode": padding_mode, "bias": bias, "init": init}, id=id)

    def pointwise(
        self, x: Handle, *, out: int, bias: bool = True, init: str = "standard", id: str | None = None
    ) -> Handle:
        """Return a linear map of the channels of each position: linear, or conv of kernel 1, as the layout asks."""
        if self.layout.is_channels_first:
            return self.conv(x, out=out, kernel=1, bias=bias, init=init, id=id)
        return self.linear(x, out=out, bias=bias, init=init, id=id)

    def batch_norm(self, x: Handle, *, id: str | None = None) -> Handle:
        """Return x normalised over examples and positions."""
        return self.apply("batch_norm", x, id=id)

    def group_norm(self, x: Handle, *, groups: int, id: str | None = None) -> Handle:
        """Return x normalised over the channels of each group and all positions."""
        return self.apply("group_norm", x, attrs={"groups": groups}, id=id)

    def layer_norm(self, x: Handle, *, id: str | None = None) -> Handle:
        """Return x normalised over the channels of each position."""
        return self.apply("layer_norm", x, id=id)

    def rms_norm(self, x: Handle, *, id: str | None = None) -> Handle:
        """Return x divided by its root mean square over the channels of each position."""
        return self.apply("rms_norm", x, id=id)

    def relu(self, x: Handle) -> Handle:
        """Return max(x, 0)."""
        return self.apply("relu", x)

    def gelu(self, x: Handle) -> Handle:
        """Return x * Phi(x), Phi being the normal distribution function."""
        return self.apply("gelu", x)

    def silu(self, x: Handle) -> Handle:
        """Return x * sigmoid(x)."""
        return self.apply("silu", x)

    def sigmoid(self, x: Handle) -> Handle:
        """Return 1 / (1 + exp(-x))."""
        return self.apply("sigmoid", x)

    def tanh(self, x: Handle) -> Handle:
        """Return the hyperbolic tangent."""
        return self.apply("tanh", x)

    def add(self, x: Handle, y: Handle) -> Handle:
        """Return x + y."""
        return self.apply("add", x, y)

    def mul(self, x: Handle, y: Handle) -> Handle:
        """Return x * y, element by element."""
        return self.apply("mul", x, y)

    def position_mean(self, x: Handle) -> Handle:
        """Return the mean over all positions: one position for all, which ``mul`` takes beside a map."""
        return self.apply("position_mean", x)

    def scale(self, x: Handle, *, value: float) -> Handle:
        """Return a constant times x."""
        return self.apply("scale", x, attrs={"value": value})

    def attention(
        self, query: Handle, key: Handle, value: Handle, *, heads: int, causal: bool, id: str | None = None
    ) -> Handle:
        """Return softmax attention over the positions, ``heads`` at once."""
        return self.apply("attention", query, key, value, attrs={"heads": heads, "causal": causal}, id=id)


Design: TypeAlias = Callable[[Graph, Site], Handle]
"""A function that draws a blueprint for a site."""


def build(design: Design, site: Site, name: str, reads: Reads = Reads.OUTPUT) -> BlueprintIR:
    """Draw a blueprint for a site.

    Args:
        design: The function that draws.
        site: The place.
        name: Label of the result.
        reads: What it is given there.

    Returns:
        The blueprint.

    Raises:
        InvalidBlueprint: If the design breaks a rule.
    """
    width = site.width_for(reads)
    if width is None:
        raise InvalidBlueprint(
            f"blueprint {name!r} has nothing to read here",
            path="$.reads",
            why="it reads what enters the module, which is not one tensor with the positions of what leaves",
            todo="Choose a module around it, or a blueprint that reads what leaves.",
        )
    graph = Graph(site.layout, width, reads)
    try:
        output = design(graph, site)
    except EsperError:
        raise
    except Exception as error:
        raise InvalidBlueprint(
            f"blueprint {name!r} could not be drawn",
            path=f"$.nodes[{len(graph.nodes)}]",
            why=f"{type(error).__name__}: {error}",
            todo="Draw with the methods of g on values of g only.",
        ) from error
    return graph.finish(output, name)
