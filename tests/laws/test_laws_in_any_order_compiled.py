"""The same for models that are compiled in place; what compiling itself costs is law 6, which has a file of its own."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.laws.any_order import Setup, run, setups


@pytest.mark.slow
@pytest.mark.parametrize("setup", tuple(setups(compiled=True)), ids=str)
def test_the_laws_hold_in_any_order_where_the_model_is_compiled(setup: Setup) -> None:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=10**4, accumulated_recompile_limit=10**4):
        run(setup, examples=2, steps=7)
    assert counters["stats"]["unique_graphs"], "something was compiled"
