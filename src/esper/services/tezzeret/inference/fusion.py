"""Algebraic fusion: rewriting a blueprint for evaluation, in which norms have fixed statistics and weights do not move.

Every rule is exact in real numbers and is applied to the weights in float64:

* a batch norm is merged into the convolution before it, or into the pointwise convolutions after it,
* a scale is merged into the affine operation before it, or into those after it; a scale by one goes,
* a pointwise affine operation is merged into the affine one before it, where that does not cost more.

A value that something else uses too is left alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.blueprints.weights import check_state
from esper.errors import CompilationError
from esper.ir import INPUT, BlueprintIR
from esper.ir.opset import NORM_EPS
from esper.ir.types import Attrs, Node
from esper.services.tezzeret.inference.draft import Draft, groups_of, is_affine, is_pointwise


@dataclass(frozen=True)
class Fused:
    """A kernel rewritten for evaluation.

    Attributes:
        ir: The smaller blueprint.
        state: Its tensors, of the type of the kernel's.
        steps: What was merged into what; empty where nothing could be.
    """

    ir: BlueprintIR
    state: Mapping[str, Tensor]
    steps: tuple[str, ...]


def fuse(ir: BlueprintIR, state: Mapping[str, Tensor]) -> Fused:
    """Merge what evaluation need not do apart.

    Args:
        ir: The blueprint.
        state: Its tensors, all of one type; they are not changed.

    Returns:
        What computes the same in evaluation. The blueprint depends on ``ir`` alone, so that weights trained later fit a form
        that was made before.

    Raises:
        ContractError: If the tensors are not the blueprint's.
        CompilationError: If a merged weight is too large for the type.

    References:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        section 3.2, for batch norm.
    """
    dtype = check_state(ir, state)
    draft = Draft.of(ir, state)
    while _pass(draft):
        pass
    fused, tensors = draft.finished()
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, tensor in cast.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CompilationError(
                f"blueprint {ir.name!r} has no inference form",
                why=f"the merged tensor {name!r} is too large for {dtype}",
            )
    return Fused(fused, cast, tuple(draft.steps))


def _pass(draft: Draft) -> bool:
    """Apply every rule to every operation once; say whether anything changed."""
    before = len(draft.nodes)
    for rule in _RULES:
        for node_id in list(draft.nodes):
            if node_id in draft.nodes:
                rule(draft, draft.nodes[node_id])
    return len(draft.nodes) < before


def _norm_into_source(draft: Draft, node: Node) -> bool:
    """Scale and move what the convolution before a batch norm gives out."""
    if node.op != "batch_norm" or (made := draft.source(node)) is None or made.op != "conv":
        return False
    gain, shift = _normalisation(draft, node)
    draft.rewrite(made, draft.weight(made) * gain[:, None, None], draft.bias(made) * gain + shift)
    draft.drop(node, f"{node.id} into {made.id}")
    return True


def _norm_into_users(draft: Draft, node: Node) -> bool:
    """Scale and move what the pointwise convolutions after a batch norm take in; wider ones would pad what was moved."""
    if node.op != "batch_norm" or not (users := draft.feeds_only(node)) or not all(map(is_pointwise, users)):
        return False
    gain, shift = _normalisation(draft, node)
    for user in users:
        weight = draft.weight(user)
        draft.rewrite(user, weight * gain[None, :, None], draft.bias(user) + weight[:, :, 0] @ shift)
    draft.drop(node, f"{node.id} into {_names(users)}")
    return True


def _normalisation(draft: Draft, node: Node) -> tuple[Tensor, Tensor]:
    """Return a and b, so that a batch norm computes a * x + b in evaluation."""
    gain = draft.owned(node, "weight") / torch.sqrt(draft.owned(node, "running_var") + NORM_EPS)
    return gain, draft.owned(node, "bias") - gain * draft.owned(node, "running_mean")


def _scale_into_source(draft: Draft, node: Node) -> bool:
    if node.op != "scale" or (made := draft.source(node)) is None or not is_affine(made):
        return False
    value = Attrs(node.attrs).number("value")
    bias = draft.bias(made) * value if Attrs(made.attrs).flag("bias") else None
    draft.rewrite(made, draft.weight(made) * value, bias)
    draft.drop(node, f"{node.id} into {made.id}")
    return True


def _scale_into_users(draft: Draft, node: Node) -> bool:
    """Every padding of zero, or of values that are there, is scaled with them."""
    if node.op != "scale" or not (users := draft.feeds_only(node)):
        return False
    value = Attrs(node.attrs).number("value")
    for user in users:
        draft.rewrite(user, draft.weight(user) * value, None)
    draft.drop(node, f"{node.id} into {_names(users)}")
    return True


def _scale_of_one(draft: Draft, node: Node) -> bool:
    if node.op != "scale" or Attrs(node.attrs).number("value") != 1.0:
        return False
    if node.id == draft.output and node.inputs[0] == INPUT:
        return False
    draft.drop(node, f"{node.id}, which changes nothing")
    return True


def _pointwise_into_source(draft: Draft, node: Node) -> bool:
    """Multiply two weights, where their product costs no more than both did."""
    if not is_affine(node) or not is_pointwise(node) or (made := draft.source(node)) is None:
        return False
    if not is_affine(made) or groups_of(made) != 1:
        return False
    first, second = draft.weight(made), draft.weight(node)[:, :, 0]
    if second.shape[0] * first[0].numel() > first.numel() + second.numel():
        return False
    merged = torch.einsum("om,mit->oit", second, first)
    biased = Attrs(made.attrs).flag("bias") or Attrs(node.attrs).flag("bias")
    bias = second @ draft.bias(made) + draft.bias(node) if biased else None
    draft.rewrite(made, merged, bias, out=int(merged.shape[0]))
    draft.drop(node, f"{node.id} into {made.id}")
    return True


def _names(nodes: list[Node]) -> str:
    return " and ".join(node.id for node in nodes)


_RULES: tuple[Callable[[Draft, Node], bool], ...] = (
    _scale_of_one,
    _norm_into_source,
    _scale_into_source,
    _pointwise_into_source,
    _norm_into_users,
    _scale_into_users,
)
