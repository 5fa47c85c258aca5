"""Running a blueprint in numpy float64."""

from collections.abc import Mapping

import numpy as np

from esper.errors import ContractError
from esper.ir import INPUT, BlueprintIR
from esper.reference.formulas import Array, formula_of, running_statistics


def evaluate(ir: BlueprintIR, weights: Mapping[str, Array], x: Array, *, training: bool = False) -> Array:
    """Compute F(x).

    Args:
        ir: The blueprint.
        weights: Its parameters and buffers by full name; taken as float64.
        x: Input in the blueprint's layout.
        training: Whether batch norm uses the statistics of the batch rather than the running ones.

    Returns:
        F(x) in float64, of the layout and the positions of x.

    Raises:
        ContractError: If the input or a weight does not have the right shape.
    """
    return _values(ir, weights, x, training)[ir.output]


def buffers_after(ir: BlueprintIR, weights: Mapping[str, Array], x: Array) -> dict[str, Array]:
    """Compute the buffers after one forward pass in training mode.

    Args:
        ir: The blueprint.
        weights: Its parameters and buffers by full name.
        x: Input in the blueprint's layout.

    Returns:
        The new buffers by full name; empty where the blueprint has none.
    """
    values = _values(ir, weights, x, training=True)
    after: dict[str, Array] = {}
    for node in ir.nodes:
        if node.op == "batch_norm":
            fresh = running_statistics(_owned(ir, weights, node.id), values[node.inputs[0]])
            after.update({f"{node.id}.{name}": value for name, value in fresh.items()})
    return after


def _values(ir: BlueprintIR, weights: Mapping[str, Array], x: Array, training: bool) -> dict[str, Array]:
    _check_input(ir, x)
    values = {INPUT: np.asarray(x, dtype=np.float64)}
    for node, use in zip(ir.nodes, ir.uses, strict=True):
        inputs = [values[source] for source in node.inputs]
        values[node.id] = formula_of(node.op)(use, _owned(ir, weights, node.id), inputs, training)
    return values


def _check_input(ir: BlueprintIR, x: Array) -> None:
    axis = 1 if ir.layout.is_channels_first else -1
    axes = 2 + ir.layout.rank
    fits = x.ndim >= 1 if ir.layout.rank == 0 else x.ndim == axes
    if not fits or x.shape[axis] != ir.channels:
        raise ContractError(
            f"input of shape {x.shape} does not fit", why=f"{ir.channels} channels in the layout {ir.layout} are needed"
        )


def _owned(ir: BlueprintIR, weights: Mapping[str, Array], node_id: str) -> dict[str, Array]:
    owned: dict[str, Array] = {}
    for name, spec in ir.tensors.items():
        holder, _, tensor = name.partition(".")
        if holder != node_id:
            continue
        if name not in weights or tuple(weights[name].shape) != spec.shape:
            raise ContractError(f"weight {name!r} is missing or misshapen", why=f"shape {spec.shape} is needed")
        owned[tensor] = np.asarray(weights[name], dtype=np.float64)
    return owned
