"""The same where inductor makes the code: births within the stated tolerance, everything else to the bit."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from tests.laws.any_order import COMBINATIONS, Setup, run
from tests.laws.compiled import nothing_compiled

__all__ = ["nothing_compiled"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(540),
    pytest.mark.filterwarnings("ignore"),  # inductor's own, which depend on the machine
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
    pytest.mark.skipif(" " in torch.__path__[0], reason="inductor cannot link libraries whose path has a space"),
]
HOSTS = ("residual_mlp", "transformer", "nested_sequential")
"""Convolutions take minutes to compile on a small machine."""


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("host", HOSTS)
def test_the_laws_hold_in_any_order_where_inductor_makes_the_code(host: str, combination: tuple[str, str]) -> None:
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=10**4, accumulated_recompile_limit=10**4):
        run(Setup(host, combination, "float32", True, "inductor"), examples=2, steps=6)
    assert counters["stats"]["unique_graphs"], "something was compiled"
