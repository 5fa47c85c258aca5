"""The trainer in two processes trains as it does in one with the batches of both, and ends, stops and resumes in step."""

import signal
from pathlib import Path

import pytest

from tests.distributed.launching import results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_two_ranks_train_as_one_process_with_batches_twice_as_large(tmp_path: Path) -> None:
    first, second = results("trainers.shared", tmp_path, size=2)
    (alone,) = results("trainers.shared", tmp_path, size=1)
    assert {key: first[key] for key in first if key != "waited"} == {
        key: second[key] for key in second if key != "waited"
    }
    assert first["waited"] == second["waited"] == 6  # 4 rounds to an epoch, two to a step: one pass of each step waits
    assert (first["steps"], alone["steps"]) == (6, 6)
    assert [event[:4] for event in first["events"]] == [event[:4] for event in alone["events"]]
    assert "grafted" in [event[1] for event in first["events"]]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for one, other in zip(first["validations"], alone["validations"], strict=True):
        assert one["values"] == pytest.approx(other["values"], rel=1e-5)
    for name, values in alone["parameters"].items():
        assert first["parameters"][name] == pytest.approx(values, abs=1e-4), name
    written = list(Path(first["folder"]).glob("checkpoints/[!.]*"))
    assert written
    assert Path(first["checkpoint"]) in written


def test_ranks_split_alike_and_stop_early_together(tmp_path: Path) -> None:
    first, second = results("trainers.split", tmp_path, size=2)
    (alone,) = results("trainers.split", tmp_path, size=1)
    assert first == second
    assert (first["ended"], first["steps"], first["best_step"]) == (alone["ended"], alone["steps"], alone["best_step"])
    assert first["ended"] == "stopped early"
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def test_a_run_of_the_trainer_goes_on_to_the_bit_on_every_rank(tmp_path: Path) -> None:
    unbroken = results("trainers.unbroken", tmp_path)
    assert unbroken[0]["digest"] == unbroken[1]["digest"]
    assert "grafted" in [event[1] for event in unbroken[0]["events"]]
    steps = [2, 4, 5]  # before the graft, right after it in mid-epoch, and later
    resumed = results("trainers.resumed", tmp_path, run=unbroken[0]["folder"], steps=steps)
    for before, each in zip(unbroken, resumed, strict=True):
        for step, after in zip(steps, each, strict=True):
            for key in before.keys() - {"folder", "checkpoint"}:
                assert after[key] == before[key], (step, key)


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit 143")], ids=["int", "term"]
)
def test_a_signal_to_one_rank_ends_all_after_the_same_step(number: int, end: str, tmp_path: Path) -> None:
    ended = results("trainers.stopped", tmp_path / "broken", signal=int(number))
    assert ended == [{"ended": end, "seen": 10}] * 2
    gone_on = results("trainers.stopped", tmp_path / "broken", signal=0, goes_on=True)
    unbroken = results("trainers.stopped", tmp_path / "whole", signal=0)
    for before, after in zip(unbroken, gone_on, strict=True):
        for key in ("digest", "losses", "validations", "events", "steps"):
            assert after[key] == before[key], key


def test_what_is_handed_over_is_shared_out_taken_as_a_share_or_refused(tmp_path: Path) -> None:
    for found in results("trainers.loaders", tmp_path):
        assert found == {
            "sharded": "", "of another number": "ESP-2714", "with a place": "ESP-2714", "with a place, sharded": "",
            "of other lengths": "ESP-2714", "a list held out": "", "a list of one": found["a list of one"],
            "sharded, held out": "ESP-2714", "held out, fewer than ranks": found["held out, fewer than ranks"],
            "twin": "ESP-2715", "ddp": "ESP-2712", "no other model": True, "ranks": 2,
        }  # fmt: skip
        for few in ("a list of one", "held out, fewer than ranks"):
            assert found[few] in ("ESP-2162", "ESP-4000"), few


def test_a_rehearsal_grafts_on_every_rank(tmp_path: Path) -> None:
    for found in results("trainers.rehearsed", tmp_path):
        assert "grafted" in found["kinds"]
        assert found["folder"] is None
