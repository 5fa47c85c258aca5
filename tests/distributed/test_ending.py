"""No thread of gloo outlives the group: a process that ends while one runs may abort with its work done."""

import json
from pathlib import Path

import pytest

from tests.distributed.launching import results


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True], ids=["let go", "held"])
def test_no_thread_of_gloo_outlives_the_group(held: bool, tmp_path: Path) -> None:
    found = results("runs.ended", tmp_path, host="nested_sequential", blueprint="mlp_adapter", held=held)
    assert found == [{"collected": True, "running": True}] * 2
    (place,) = tmp_path.glob("group-*")
    for rank in range(2):
        left = json.loads((place / f"threads{rank}.json").read_text())
        assert bool(left) == held, left  # held: the fault that the test must see
