"""Hosts of the zoo under ``torch.compile``, and a count of what was compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import config

from esper.ir import REGISTRY
from esper.kasmina import compile_regions, compiling, placement_of
from esper.testing.zoo import ZooHost
from tests.laws.support import wrapped

Backend = Callable[..., Any]
LIMITS = (8, 256)
"""What torch comes with; growth elsewhere in the same process may have made room for more."""


class Counting:
    """A backend that runs graphs as they are, or hands them to another, and keeps their code."""

    def __init__(self, inner: Backend | None = None) -> None:
        self.codes: list[str] = []
        self._inner = inner

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.codes.append(graph.code)
        return graph.forward if self._inner is None else self._inner(graph, inputs)

    @property
    def count(self) -> int:
        """Graphs compiled so far."""
        return len(self.codes)


def aot_eager() -> Counting:
    """Return a counting backend that traces forward and backward as inductor does, and runs them eagerly."""
    from torch._dynamo.backends.registry import lookup_backend

    return Counting(lookup_backend("aot_eager"))


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Begin and end each test with an empty compiler and the limits that torch comes with."""
    before = config.recompile_limit, config.accumulated_recompile_limit
    config.recompile_limit, config.accumulated_recompile_limit = LIMITS
    torch._dynamo.reset()
    compiling._structures.clear()
    yield
    torch._dynamo.reset()
    compiling._structures.clear()
    config.recompile_limit, config.accumulated_recompile_limit = before


def by_slots(model: nn.Module, backend: Backend) -> None:
    """Compile every slot as a region of its own."""
    compile_regions(model, backend=backend)


def whole(model: nn.Module, backend: Backend) -> None:
    """Compile the model as one region."""
    compile_regions(model, "model", backend=backend)


def in_place(model: nn.Module, backend: Backend) -> None:
    """Compile the model as torch's users do."""
    model.compile(backend=backend)


def block_by_block(model: nn.Module, backend: Backend) -> None:
    """Compile every slot as torch's users do."""
    for name in placement_of(model).slots:
        model.get_submodule(name).compile(backend=backend)


def compiled(
    host: ZooHost, way: Callable[[nn.Module, Backend], None], backend: Counting | None = None
) -> tuple[nn.Module, Counting]:
    """Return a wrapped host whose parts are compiled by the counting backend."""
    model, counting = wrapped(host), backend or Counting()
    way(model, counting)
    return model, counting


def first_blueprint(model: nn.Module, slot: str) -> str:
    """Return a blueprint that fits a slot."""
    return next(iter(REGISTRY.eligible(placement_of(model).place(slot).site())))
