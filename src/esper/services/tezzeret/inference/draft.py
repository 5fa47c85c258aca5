"""A blueprint with its weights while it is rewritten: what is computed stays the same, with fewer operations."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from esper.ir import BlueprintIR
from esper.ir.types import Attr, Attrs, Node

_AFFINE = ("linear", "conv")


@dataclass
class Draft:
    """Operations and their tensors in float64.

    Attributes:
        ir: What it started as; layout, channels and name stay.
        nodes: Operations by id, in order.
        tensors: Tensors by full name.
        output: Id of the value that is F(x).
        steps: What was rewritten, for people.
    """

    ir: BlueprintIR
    nodes: dict[str, Node]
    tensors: dict[str, Tensor]
    output: str
    steps: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, ir: BlueprintIR, state: Mapping[str, Tensor]) -> Self:
        """Begin with a blueprint as it is."""
        tensors = {name: tensor.detach().to(torch.float64, copy=True) for name, tensor in state.items()}
        return cls(ir, {node.id: node for node in ir.nodes}, tensors, ir.output)

    def users(self, node_id: str) -> list[Node]:
        """Return the operations that take a value, an operation that takes it twice once."""
        return [node for node in self.nodes.values() if node_id in node.inputs]

    def source(self, node: Node) -> Node | None:
        """Return what made the only input of a node, where nothing else uses that value; None otherwise."""
        made = self.nodes.get(node.inputs[0])
        if made is None or len(node.inputs) != 1 or made.id == self.output or len(self.users(made.id)) != 1:
            return None
        return made

    def feeds_only(self, node: Node) -> list[Node]:
        """Return the users of a value that is no result, where each is affine with one input; nothing otherwise."""
        users = self.users(node.id)
        return users if node.id != self.output and users and all(map(is_affine, users)) else []

    def owned(self, node: Node, tensor: str) -> Tensor:
        """Return a tensor of a node."""
        return self.tensors[f"{node.id}.{tensor}"]

    def weight(self, node: Node) -> Tensor:
        """Return the weight of an affine node as (out, in per group, taps)."""
        weight = self.owned(node, "weight")
        return weight.reshape(*weight.shape[:2], -1)

    def bias(self, node: Node) -> Tensor:
        """Return the bias of an affine node; zeros where it has none."""
        weight = self.owned(node, "weight")
        return self.tensors.get(f"{node.id}.bias", weight.new_zeros(weight.shape[0]))

    def rewrite(self, node: Node, weight: Tensor, bias: Tensor | None, **attrs: Attr) -> None:
        """Give an affine node another weight, of (out, in per group, taps), and another bias."""
        taps = self.owned(node, "weight").shape[2:]
        self.tensors[f"{node.id}.weight"] = weight.reshape(*weight.shape[:2], *taps)
        if bias is not None:
            self.tensors[f"{node.id}.bias"] = bias
            attrs["bias"] = True
        # Looked up again: the node in hand may be older than its last change.
        known = self.nodes[node.id]
        self.nodes[node.id] = replace(known, attrs=Attrs({**known.attrs, **attrs}))

    def drop(self, node: Node, step: str) -> None:
        """Take a node out; its input takes its place."""
        del self.nodes[node.id]
        for name in [name for name in self.tensors if name.partition(".")[0] == node.id]:
            del self.tensors[name]
        kept = node.inputs[0]
        for user in self.users(node.id):
            inputs = tuple(kept if name == node.id else name for name in user.inputs)
            self.nodes[user.id] = replace(user, inputs=inputs)
        self.output = kept if self.output == node.id else self.output
        self.steps.append(step)

    def finished(self) -> tuple[BlueprintIR, dict[str, Tensor]]:
        """Return the blueprint and its tensors in float64, in the blueprint's order."""
        ir = replace(self.ir, nodes=tuple(self.nodes.values()), output=self.output)
        return ir, {name: self.tensors[name].contiguous() for name in ir.tensors}


def is_affine(node: Node) -> bool:
    """Say whether a node maps its one input linearly, plus a bias."""
    return node.op in _AFFINE


def is_pointwise(node: Node) -> bool:
    """Say whether an affine node looks at one position, at all channels of it."""
    whole = Attrs(node.attrs)
    return node.op == "linear" or (whole.integer("kernel") == 1 and whole.integer("groups") == 1)


def groups_of(node: Node) -> int:
    """Return the groups of an affine node."""
    return Attrs(node.attrs).integer("groups") if node.op == "conv" else 1
