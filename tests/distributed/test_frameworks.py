"""Lightning, transformers and Accelerate in two processes: the callbacks grow, go on to the bit, and roll back."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def _digests(found: dict[str, Any]) -> list[list[Any]]:
    return [told[:2] for told in found["told"]]


def test_a_fit_of_lightning_grows_goes_on_and_rolls_back_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    whole = results("frameworks.in_lightning", tmp_path, at=None)
    assert _digests(whole[0]) == _digests(whole[1])
    assert [told[2] for told in whole[0]["told"]] != [told[2] for told in whole[1]["told"]]
    assert whole[0]["events"] == whole[1]["events"]
    kinds = [event[1] for event in whole[0]["events"]]
    assert (kinds.count("grafted"), kinds.count("rolled_back")) == (2, 1)
    for at in (8, 16):  # with one graft, and with two, of which one is undone after it
        gone_on = results("frameworks.in_lightning", tmp_path, at=at)
        for before, after in zip(whole, gone_on, strict=True):
            assert after["told"] == before["told"][at:]
            assert [event[:5] for event in after["events"]] == [event[:5] for event in before["events"]]


def test_a_training_of_transformers_grows_goes_on_and_rolls_back_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    whole = results("frameworks.in_transformers", tmp_path, at=None)
    assert whole[0] == whole[1]
    assert whole[0]["reduced"] == 2
    assert {"grafted", "rolled_back"} <= {event[1] for event in whole[0]["events"]}
    before, after = whole[0]["told"][4], whole[0]["told"][13]
    assert before[1] == after[2], "undone to the bit"
    for at in (4, 8):
        gone_on = results("frameworks.in_transformers", tmp_path, at=at)
        assert gone_on[0] == gone_on[1]
        assert gone_on[0]["told"] == whole[0]["told"][at:]


def test_a_loop_of_accelerate_grows_goes_on_and_rolls_back_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    whole = results("frameworks.in_accelerate", tmp_path / "whole", until=None, resume=False)
    assert whole[0]["digests"] == whole[1]["digests"]
    assert whole[0]["losses"] != whole[1]["losses"]
    assert whole[0]["kinds"] == ["grafted", "rolled_back"]
    assert whole[0]["undone"]
    results("frameworks.in_accelerate", tmp_path / "parts", until=35, resume=False)
    rest = results("frameworks.in_accelerate", tmp_path / "parts", until=None, resume=True)
    for one, other in zip(whole, rest, strict=True):
        assert other["losses"] == one["losses"][35:]
        assert other["digests"] == one["digests"][35:]
