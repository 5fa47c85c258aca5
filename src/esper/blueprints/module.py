"""A kernel as a torch module."""

from collections.abc import Mapping

from torch import Tensor, nn

from esper.blueprints.bodies import Body, body_of
from esper.blueprints.weights import check_state
from esper.ir import INPUT, BlueprintIR


class KernelModule(nn.Module):
    """F of a graft y = h + alpha * F(x): runs the nodes of a blueprint one after the other.

    Parameters and buffers are called ``<node id>.<tensor>``, as in the state it is made of.

    Args:
        ir: The blueprint.
        state: Its tensors, all of one type. They are adopted, not copied, and nothing is drawn.

    Attributes:
        ir: The blueprint.

    Raises:
        ContractError: If the tensors are not the blueprint's.
    """

    def __init__(self, ir: BlueprintIR, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        check_state(ir, state)
        self.ir = ir
        places = _places(ir)
        self._width = 1 + max(places.values())
        # For each node: its function (None: the child module of that name), name, sources and target among the values.
        plan: list[tuple[Body | None, str, tuple[int, ...], int]] = []
        for node, use in zip(ir.nodes, ir.uses, strict=True):
            owned = {name.partition(".")[2]: state[name] for name in ir.tensors if name.partition(".")[0] == node.id}
            body = body_of(node.op, use, owned)
            if isinstance(body, nn.Module):
                self.add_module(node.id, body)
            sources = tuple(places[source] for source in node.inputs)
            plan.append((None if isinstance(body, nn.Module) else body, node.id, sources, places[node.id]))
        self._plan = tuple(plan)
        self._result = places[ir.output]

    def forward(self, x: Tensor) -> Tensor:
        """Return F(x), of the layout and the positions of x."""
        values = [x] * self._width
        children = self._modules
        for function, name, sources, target in self._plan:
            body = children[name] if function is None else function
            values[target] = body(*[values[source] for source in sources])  # type: ignore[misc]
        return values[self._result]

    def extra_repr(self) -> str:
        """Show what it computes."""
        return f"{self.ir.layout}, channels={self.ir.channels}, reads={self.ir.reads}, {self.ir.digest[:19]}"


def _places(ir: BlueprintIR) -> dict[str, int]:
    """Give each value a place in a short list; a place is used again once its value is not needed any more."""
    last_use = {source: index for index, node in enumerate(ir.nodes) for source in node.inputs}
    last_use[ir.output] = len(ir.nodes)
    places = {INPUT: 0}
    free: list[int] = []
    taken = 1
    for index, node in enumerate(ir.nodes):
        free += sorted({places[source] for source in node.inputs if last_use[source] == index})
        if free:
            places[node.id] = free.pop()
        else:
            places[node.id] = taken
            taken += 1
    return places
