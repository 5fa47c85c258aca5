"""Law 7: every rank makes the same graft at the same step, and ranks stay equal to the bit."""

from pathlib import Path

import pytest

from tests.distributed.launching import results

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("host", "blueprint"), [("nested_sequential", "mlp_adapter"), ("resnet", "conv_bottleneck")])
def test_ranks_are_equal_to_the_bit_over_grafts_a_cull_and_a_rollback(
    host: str, blueprint: str, tmp_path: Path
) -> None:
    first, second = results("runs.whole_run", tmp_path, host=host, blueprint=blueprint)
    assert first["digests"] == second["digests"]
    assert first["events"] == second["events"]
    assert first["history"] == second["history"]
    assert first["losses"] != second["losses"]
    kinds = [event[1] for event in first["events"]]
    assert kinds.count("grafted") == 3
    assert {"culled", "rolled_back"} <= set(kinds)
    assert first["run"] == second["run"]
    assert (first["threads"], second["threads"]) == (1, 0)
