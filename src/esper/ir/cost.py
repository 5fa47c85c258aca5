"""What a blueprint costs, known before anything is built."""

from dataclasses import dataclass

from esper.errors import ContractError, InvalidBlueprint
from esper.ir import ops
from esper.ir.representation import BlueprintIR


@dataclass(frozen=True)
class Cost:
    """Exact static cost.

    Attributes:
        params: Trainable parameters.
        flops: Forward FLOPs for one example; a multiply-add counts 2, element-wise work nothing.
    """

    params: int
    flops: int


def cost(ir: BlueprintIR, extent: tuple[int, ...]) -> Cost:
    """Count parameters and forward FLOPs.

    Args:
        ir: The blueprint.
        extent: Sizes of the position axes: () for features, (L,) for sequences, (H, W) for images.

    Returns:
        The cost for one example. The residual addition is not counted, as torch does not count it either.

    Raises:
        ContractError: If the extent does not fit the layout.
        InvalidBlueprint: If an operation needs a larger extent.
    """
    if len(extent) != ir.layout.rank or min(extent, default=1) < 1:
        raise ContractError(
            f"extent {extent} does not fit the layout {ir.layout}",
            why=f"it has {ir.layout.rank} position axes, each of at least 1",
        )
    check_extent(ir, extent)
    flops = sum(ops.get(node.op).flops(use, use.positions(extent)) for node, use in zip(ir.nodes, ir.uses, strict=True))
    return Cost(sum(tensor.numel for tensor in ir.tensors.values() if tensor.trainable), flops)


def check_extent(ir: BlueprintIR, extent: tuple[int, ...]) -> None:
    """Refuse positions too few for an operation.

    Raises:
        InvalidBlueprint: If reflected or circular padding would be wider than the extent.
    """
    for index, (node, use) in enumerate(zip(ir.nodes, ir.uses, strict=True)):
        least = ops.get(node.op).min_extent(use)
        if min(extent, default=least) < least:
            raise InvalidBlueprint(
                f"operation {node.op!r} needs {least} positions on each axis",
                path=f"$.nodes[{index}]",
                why=f"the extent is {extent}",
                todo="Pad with zeros, or use a smaller kernel.",
            )
