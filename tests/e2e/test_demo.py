"""The demo as a user runs it: real training, real grafts, one JSON object, nothing left behind."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from esper.datasets import characters

ARMS = [
    "static_small",
    "static_small_equal_flops",
    "esper",
    "static_final",
    "static_final_equal_flops",
    "random_growth",
    "front_first",
]


def demo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "esper.cli", "demo", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=110,
    )  # fmt: skip


def check_object(found: dict[str, Any], task: str, seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Check what the JSON object promises, and return its arms by name."""
    assert (found["task"], found["seeds"]) == (task, seeds)
    assert [arm["name"] for arm in found["arms"]] == ARMS
    for arm in found["arms"]:
        assert set(arm) == {"name", "params", "test_metric_mean", "test_metric_sd", "train_flops"}
        assert 0 < arm["test_metric_mean"] <= 1
        assert arm["test_metric_sd"] >= 0
    for event in found["events"]:
        assert set(event) == {"seed", "step", "action", "slot", "blueprint", "why", "gain", "kept"}
        assert event["why"]
    assert {event["seed"] for event in found["events"] if event["action"] == "grafted"} == set(seeds)
    assert isinstance(found["training_thread_waits"], int)
    assert found["late_waits"] > 0
    assert found["metric"] == "accuracy"
    return {arm["name"]: arm for arm in found["arms"]}


def test_spirals_grow_and_print_one_object_whose_controls_match_what_grew(tmp_path: Path) -> None:
    done = demo("spirals", "--quick", "--json", "--root", "runs", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    arms = check_object(found, "spirals", [0, 1])
    assert found["quick"] is True
    assert arms["static_small"]["params"] == 114
    grafted = sum(event["action"] == "grafted" for event in found["events"])
    assert grafted == 4  # both slots on both seeds: the budget is for two gated perceptrons
    assert arms["esper"]["params"] == arms["static_final"]["params"] == 114 + 2 * 1272
    # 240 steps of 128 points; one costs 2 * 192 + 160 FLOPs in the host and 3 * 4608 in the grafts.
    assert arms["static_small"]["train_flops"] == 240 * 128 * (2 * 192 + 160)
    assert arms["static_final"]["train_flops"] == 240 * 128 * (2 * 192 + 160 + 3 * 4608)
    spent = arms["esper"]["train_flops"]
    for name, per_step in (("static_small_equal_flops", 128 * 544), ("static_final_equal_flops", 128 * (544 + 13824))):
        assert spent - per_step < arms[name]["train_flops"] <= spent
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    runs = [path for path in (tmp_path / "runs").iterdir() if path.name.startswith("run")]
    assert len(runs) == 6  # three growing arms on two seeds


@pytest.mark.slow
def test_digits_grow_and_the_log_tells_it_as_it_happens(tmp_path: Path) -> None:
    done = demo("digits", "--quick", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    grafts = [line for line in lines if line.startswith("seed ") and " graft " in line]
    assert grafts
    assert all("why: " in line and "@stage" in line and " params" in line for line in grafts)
    assert sum(line.startswith("esper beside ") for line in lines) == 6
    assert any(line.startswith("quick: ") for line in lines)
    assert lines[-1].startswith("next: esper demo spirals")


@pytest.mark.slow
def test_help_pages_grow_and_are_told_in_bits_beside_the_characters_that_were_right(tmp_path: Path) -> None:
    done = demo("pydoc", "--quick", "--seeds", "1", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["task"], found["metric"]) == ("pydoc", "bits_per_character")
    for arm in found["arms"]:
        assert 1 < arm["test_metric_mean"] < math.log2(len(characters().alphabet))  # what one who knows nothing needs
        assert 0 < arm["test_accuracy_mean"] < 1
    grafts = [event for event in found["events"] if event["action"] == "grafted"]
    assert {event["slot"] for event in grafts} == {"block1", "block2"}


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    done = demo("spirals", "--quick", "--seeds", "1", "--root", "taken", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("ESP-")
    assert "Traceback" not in done.stderr


def descendants(pid: int) -> set[int]:
    """Return every process that came from one, whichever of its threads started it."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = {int(child) for text in lists for child in text.split()}
    return children.union(*(descendants(child) for child in children))


def test_an_interrupt_ends_every_process_and_exits_with_130(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "esper.cli", "demo", "spirals"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(" graft " in line for line in process.stdout)  # the forge has been started by then
    started = descendants(process.pid)
    assert len(started) >= 3  # two training processes and a forge
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == ""
    assert not [pid for pid in started if runs(pid)]


def runs(pid: int) -> bool:
    """Whether a process still runs, a moment after it was ended."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True
