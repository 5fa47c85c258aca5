"""Growth under FSDP2: newborns are sharded as their host is, and what is undone or resumed is equal to the bit."""

from pathlib import Path

import pytest

from tests.distributed.launching import results


@pytest.mark.slow
def test_a_sharded_model_grows_as_a_whole_one_does(tmp_path: Path) -> None:
    how = {"host": "residual_mlp", "blueprint": "mlp_adapter"}
    first, second = results("sharding.sharded", tmp_path, **how)
    (alone,) = results("sharding.sharded", tmp_path, size=1, shares=2, **how)
    for rank in (first, second):
        assert (rank["undone"], rank["loaded"], rank["resumed"]) == (True, True, True)
        assert rank["placed"] == ["DTensor"]
        assert rank["apart"] == "ESP-2145"
    assert first["events"] == second["events"]
    assert first["parameters"] == second["parameters"]
    assert {"grafted", "culled", "rolled_back"} <= {event[1] for event in first["events"]}
    assert [event[:4] for event in first["events"]] == [event[:4] for event in alone["events"]]
    assert first["validation"] == pytest.approx(alone["validation"], rel=1e-3)
