"""Whether a graft is neutral and alive at birth, decided without a single number being computed."""

from dataclasses import dataclass

from esper.ir import ops
from esper.ir.birth import Grad, Use, Value, merged
from esper.ir.representation import BlueprintIR
from esper.ir.types import INPUT, Node

STEPS = 3
"""Steps 0, 1 and 2: by the last one every parameter must have had a gradient."""


@dataclass(frozen=True)
class Step:
    """One abstract training step.

    Attributes:
        values: Kind of each node's output, and of the input.
        grads: Kind of the gradient that reaches each node's output.
        live: Full names of the parameters that got a gradient.
    """

    values: dict[str, Value]
    grads: dict[str, Grad]
    live: frozenset[str]


@dataclass(frozen=True)
class Liveness:
    """The first steps of a graft's life.

    Attributes:
        steps: Steps 0 to 2; a parameter that got a gradient differs from zero in the steps after.
        zero_factors: Parameters of the operations whose weight is zero at birth.
    """

    steps: tuple[Step, ...]
    zero_factors: frozenset[str]

    @property
    def is_neutral(self) -> bool:
        """Whether F(x) is exactly zero at birth, for every x."""
        return self.output_at_birth is Value.ZERO

    @property
    def output_at_birth(self) -> Value:
        """Kind of F(x) at birth."""
        return self._output(0)

    @property
    def output_when_grown(self) -> Value:
        """Kind of F(x) once every live parameter has moved."""
        return self._output(-1)

    def _output(self, step: int) -> Value:
        return next(reversed(self.steps[step].values.values()))

    @property
    def ever_live(self) -> frozenset[str]:
        """Parameters that got a gradient in one of the steps."""
        return frozenset().union(*(step.live for step in self.steps))


def liveness(ir: BlueprintIR) -> Liveness:
    """Simulate the first steps of training with kinds of values in place of numbers.

    Args:
        ir: The blueprint.

    Returns:
        What is zero and what gets a gradient in each step, for generic weights and inputs.
    """
    nonzero = {name: tensor.starts_nonzero for name, tensor in ir.tensors.items() if tensor.trainable}
    zeros = frozenset(name for name in nonzero if not nonzero.get(f"{name.partition('.')[0]}.weight", True))
    steps: list[Step] = []
    for _ in range(STEPS):
        steps.append(_step(ir, nonzero))
        nonzero = {name: was or name in steps[-1].live for name, was in nonzero.items()}
    return Liveness(tuple(steps), zeros)


def _step(ir: BlueprintIR, nonzero: dict[str, bool]) -> Step:
    values = {INPUT: Value.VARIED}
    for node, use in zip(ir.nodes, ir.uses, strict=True):
        rule = ops.get(node.op).birth
        values[node.id] = rule.value(use, _inputs(node, values), _owned(node, use, nonzero))
    grads = dict.fromkeys(values, Grad.NONE)
    grads[ir.output] = Grad.FULL
    live: set[str] = set()
    for node, use in zip(reversed(ir.nodes), reversed(ir.uses), strict=True):
        rule = ops.get(node.op).birth
        flow = rule.flow(use, _inputs(node, values), _owned(node, use, nonzero), grads[node.id])
        for source, grad in zip(node.inputs, flow.inputs, strict=True):
            grads[source] = merged(grads[source], grad)
        live.update(f"{node.id}.{name}" for name, gets in flow.params.items() if gets)
    return Step(values, grads, frozenset(live))


def _inputs(node: Node, values: dict[str, Value]) -> tuple[Value, ...]:
    return tuple(values[source] for source in node.inputs)


def _owned(node: Node, use: Use, nonzero: dict[str, bool]) -> dict[str, bool]:
    tensors = ops.get(node.op).tensors(use)
    return {tensor.name: nonzero[f"{node.id}.{tensor.name}"] for tensor in tensors if tensor.trainable}
