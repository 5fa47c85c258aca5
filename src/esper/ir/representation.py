"""A blueprint as data."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self, TypeAlias, Union

from esper.errors import InvalidBlueprint
from esper.ir import ops
from esper.ir.birth import Use
from esper.ir.caps import CAPS, Caps
from esper.ir.codec import Document, parsed
from esper.ir.digest import digest_of
from esper.ir.graph_check import Form, check_reach, completed_node, depth_of, factors_of
from esper.ir.names import NAME_RULE, is_blueprint_name
from esper.ir.spec import TensorSpec
from esper.ir.types import INPUT, Layout, Node, Reads

JsonValue: TypeAlias = Union[bool, int, float, str, list["JsonValue"], dict[str, "JsonValue"], None]  # noqa: UP007
"""What JSON can say."""

VERSION = 1
"""Version of the representation that this library writes and reads."""


@dataclass(frozen=True)
class BlueprintIR:
    """A design F for a graft y = h + alpha * F(h), or y = M(x) + alpha * F(x); the addition is not part of it.

    F keeps layout and extent, and the channels too where it reads what it is added to.

    A blueprint that exists is valid: the constructor checks all rules but law 2, for
    which there is `esper.ir.check_birth`.

    Attributes:
        name: A label for people. It is in neither the canonical form nor the digest, and equality ignores it: what is
            computed is what a blueprint *is*.
        layout: Where the channels of every value lie.
        channels: Width of the input.
        nodes: Operations in order: each uses ``"input"`` and nodes before it.
        output: Id of the node that is F(x).
        version: Version of the representation.
        reads: Whether x is what leaves the slot's module, to which F(x) is added, or what enters it.
        out_channels: Width of F(x); derived.
        uses: Each node's operation in its place; derived.

    Raises:
        InvalidBlueprint: If a rule is broken; ``path`` says where.
    """

    name: str = field(compare=False)
    layout: Layout
    channels: int
    nodes: tuple[Node, ...]
    output: str
    version: int = VERSION
    reads: Reads = Reads.OUTPUT
    out_channels: int = field(init=False, repr=False, compare=False)
    uses: tuple[Use, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_head()
        forms = {INPUT: Form(self.channels)}
        nodes: list[Node] = []
        uses: list[Use] = []
        for index, node in enumerate(self.nodes):
            node, use, forms[node.id] = completed_node(node, index, forms, self.layout, CAPS)
            nodes.append(node)
            uses.append(use)
        object.__setattr__(self, "nodes", tuple(nodes))
        object.__setattr__(self, "uses", tuple(uses))
        self._check_output(forms)
        object.__setattr__(self, "out_channels", forms[self.output].channels)
        check_caps(self, CAPS)

    def _check_head(self) -> None:
        if self.version != VERSION:
            raise InvalidBlueprint(
                f"version {self.version!r} is not known", path="$.version", why=f"this library reads version {VERSION}"
            )
        if not is_blueprint_name(self.name):
            raise InvalidBlueprint(f"bad name {self.name[:80]!r}", path="$.name", why=f"a name is {NAME_RULE}")
        if not 1 <= self.channels <= CAPS.channels:
            raise InvalidBlueprint(
                f"{self.channels} channels", path="$.channels", why=f"from 1 to {CAPS.channels} are allowed"
            )
        if len(self.nodes) > CAPS.nodes:
            raise InvalidBlueprint(
                "too many nodes", path="$.nodes", why=f"{len(self.nodes)} nodes; the cap is {CAPS.nodes}"
            )

    def _check_output(self, forms: dict[str, Form]) -> None:
        if self.output not in forms:
            raise InvalidBlueprint(
                f"there is no node {str(self.output)[:80]!r}",
                path="$.output",
                todo=ops.near(str(self.output)[:80], forms),
            )
        out = forms[self.output]
        if self.reads is Reads.OUTPUT and out.channels != self.channels:
            raise InvalidBlueprint(
                f"the output has {out.channels} channels",
                path="$.output",
                why=f"it is added to an input of {self.channels}",
            )
        if out.pooled:
            raise InvalidBlueprint(
                "the output has one position for all",
                path="$.output",
                why="it is added to a map that has its own at each",
                todo="Multiply it with such a map.",
            )
        check_reach(self.nodes, self.output)

    @classmethod
    def from_json(cls, source: object, *, caps: Caps = CAPS) -> Self:
        """Read a blueprint that somebody sent.

        Args:
            source: JSON text or bytes, or the parsed object.
            caps: Limits narrower than the outermost ones.

        Returns:
            A valid blueprint with every attribute filled in. One without a name is called ``unnamed``.

        Raises:
            InvalidBlueprint: If a rule is broken; ``path`` says where.
        """
        document: Document = parsed(source, caps)
        ir = cls(
            name=document.name,
            layout=document.layout,
            channels=document.channels,
            nodes=document.nodes,
            output=document.output,
            version=document.version,
            reads=document.reads,
        )
        check_caps(ir, caps)
        return ir

    def to_json(self) -> dict[str, JsonValue]:
        """Return the blueprint as an object for JSON, every attribute written out."""
        return {"name": self.name, **self._content()}

    def _content(self) -> dict[str, JsonValue]:
        nodes: list[JsonValue] = [
            {"id": node.id, "op": node.op, "inputs": list(node.inputs), "attrs": dict(node.attrs)}
            for node in self.nodes
        ]
        content: dict[str, JsonValue] = {
            "version": self.version,
            "layout": str(self.layout),
            "channels": self.channels,
            "nodes": nodes,
            "output": self.output,
        }
        # The default is left out: a digest is that of what is computed.
        return content if self.reads is Reads.OUTPUT else {**content, "reads": str(self.reads)}

    def canonical(self) -> bytes:
        """Return the one JSON text of what is computed: keys sorted, no spaces, attributes complete, no name."""
        return json.dumps(self._content(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @cached_property
    def digest(self) -> str:
        """Content address of the canonical form, ``sha256:<hex>``: the id of the blueprint everywhere."""
        return digest_of(self.canonical())

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every parameter and buffer by its full name, such as ``conv1.weight``, in the order of the nodes."""
        return {
            f"{node.id}.{tensor.name}": tensor
            for node, use in zip(self.nodes, self.uses, strict=True)
            for tensor in ops.get(node.op).tensors(use)
        }

    @property
    def is_trusted(self) -> bool:
        """Whether it uses the closed set only, no extension."""
        return all(ops.get(node.op).trusted for node in self.nodes)


def check_caps(ir: BlueprintIR, caps: Caps) -> None:
    """Refuse a blueprint that is too large.

    Raises:
        InvalidBlueprint: If it exceeds a cap; the reason has both numbers.
    """
    one = (1,) * ir.layout.rank
    flops = sum(ops.get(node.op).flops(use, one) for node, use in zip(ir.nodes, ir.uses, strict=True))
    params = sum(tensor.numel for tensor in ir.tensors.values() if tensor.trainable)
    measured = {
        "nodes": (len(ir.nodes), caps.nodes, "$.nodes"),
        "operations on the longest path": (depth_of(ir.nodes), caps.depth, "$.nodes"),
        "factors of one value": (factors_of(ir.nodes), caps.factors, "$.nodes"),
        "channels": (
            max(ir.channels, ir.out_channels, *(max(use.inputs) for use in ir.uses), 1),
            caps.channels,
            "$.channels",
        ),
        "parameters": (params, caps.params, "$"),
        "FLOPs per position": (flops, caps.flops_per_position, "$"),
    }
    for what, (found, limit, path) in measured.items():
        if found > limit:
            raise InvalidBlueprint(f"too many {what}", path=path, why=f"{found} {what}; the cap is {limit}")
