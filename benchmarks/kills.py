"""Does a growing run that is killed at any moment end as if it had never been?

A child process trains a host with dropout and batch norm, grafts three times and rolls one graft back, and saves beside the
training every third step. It is ended by SIGKILL at a random moment and started again; what it ends with is compared with the
unbroken run: every parameter and moment, every loss, every event with its figures. Two more resume without torch's generator, to
see that the comparison tells.
"""

import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.support.killable import EVERY, fill, story_of
from benchmarks.support.report import ROOT, Answer, Target

KILLS, QUICK_KILLS = 200, 10
LANES = 2
LIMIT_S = 120.0
"""A run takes one or two seconds; one that hangs is a failure."""


@dataclass(frozen=True)
class Moment:
    """When a run is killed: so many seconds after it said something.

    Attributes:
        said: Index of what it said.
        after_s: Seconds after that.
    """

    said: int
    after_s: float


@dataclass(frozen=True)
class Unbroken:
    """The run that nobody kills.

    Attributes:
        end: What it ended with.
        timeline: What it said, and when, in seconds from its start to train.
    """

    end: dict[str, Any]
    timeline: list[tuple[str, float]]

    def moment(self, dice: random.Random) -> Moment:
        """Draw a moment, all equally likely from the first step to the end."""
        at = dice.uniform(0.0, self.timeline[-1][1])
        said = max(index for index, (_, when) in enumerate(self.timeline) if when <= at)
        return Moment(said, at - self.timeline[said][1])

    @property
    def graft_steps(self) -> set[int]:
        """Steps at which a graft joined."""
        return {step for step, kind, *_ in self.end["story"] if kind == "grafted"}


@dataclass(frozen=True)
class Kill:
    """What came of one kill.

    Attributes:
        hit: What it hit.
        differs: In what the resumed run differs from the unbroken one; empty where it is exact.
        repeated_steps: Steps that were trained twice.
        taken_s: How long kill and resume took.
    """

    hit: str
    differs: tuple[str, ...]
    repeated_steps: int
    taken_s: float


def answer(*, quick: bool, seed: int) -> Answer:
    """Kill and resume runs, and count those that end exactly as the unbroken one."""
    number = QUICK_KILLS if quick else KILLS
    with tempfile.TemporaryDirectory(prefix="esper-kills-") as name:
        root = Path(name)
        asyncio.run(fill(root))
        unbroken = _unbroken(root, seed)
        with ThreadPoolExecutor(LANES) as lanes:
            kills = list(lanes.map(lambda index: _killed(root, unbroken, seed, index), range(number)))
            forgetful = list(lanes.map(lambda index: _killed(root, unbroken, seed, -index, "forgetful"), range(1, 3)))
    return _answer(unbroken, kills, forgetful)


def _answer(unbroken: Unbroken, kills: list[Kill], forgetful: list[Kill]) -> Answer:
    exact = sum(not kill.differs for kill in kills)
    result = Answer(
        method=f"{len(kills)} runs killed by SIGKILL at random moments, {LANES} at a time, each resumed from its newest whole "
        "checkpoint in a new process; exact: digest of all parameters, buffers and moments, every loss, and every event "
        "with its figures equal those of the unbroken run, and the killed run's log is a beginning of its log"
    )
    story = Counter(kind for _, kind, *_ in unbroken.end["story"])
    result.metrics = {
        "kills": len(kills),
        "exact": exact,
        **{f"hit_{name}": number for name, number in sorted(Counter(kill.hit for kill in kills).items())},
        **{f"differs_in_{name}": n for name, n in sorted(Counter(d for kill in kills for d in kill.differs).items())},
        **{f"events_{kind}": number for kind, number in sorted(story.items())},
        "steps_trained_twice_median": statistics.median(kill.repeated_steps for kill in kills),
        "kill_and_resume_median_s": statistics.median(kill.taken_s for kill in kills),
    }
    result.baselines = {
        "kills_resumed_without_torchs_generator": len(forgetful),
        "exact_without_torchs_generator": sum(not kill.differs for kill in forgetful),
    }
    result.ratios = {"exact_over_kills": exact / len(kills)}
    result.targets = [Target("exact", "==", float(len(kills)), float(exact))]
    return result


def _unbroken(root: Path, seed: int) -> Unbroken:
    folder = _folder(root, "unbroken")
    timeline: list[tuple[str, float]] = []
    with _started(folder, seed) as child:
        assert child.stdout is not None
        began = 0.0
        for line in child.stdout:
            began = began or perf_counter()
            timeline.append((line.strip(), perf_counter() - began))
    return Unbroken(_end(folder), timeline)


def _killed(root: Path, unbroken: Unbroken, seed: int, index: int, *how: str) -> Kill:
    """Kill a run at a moment of its own, resume it, and compare."""
    dice = random.Random(f"{seed}.{index}")
    start = perf_counter()
    folder = _folder(root, f"kill-{index}")
    while (last := _until(unbroken.moment(dice), folder, seed)) is None:  # it was through before the moment came
        shutil.rmtree(folder)
        folder = _folder(root, f"kill-{index}")
    hit, differs = _hit(folder, last, unbroken), []
    told = _log(folder)
    if told != unbroken.end["story"][: len(told)]:
        differs.append("log")
    _run(folder, seed, *how)
    if not (folder / "end.json").exists():
        return Kill(hit, (*differs, "end"), 0, perf_counter() - start)  # what went wrong stands on standard error
    end = _end(folder)
    differs += [name for name in ("digest", "losses", "story") if end[name] != unbroken.end[name]]
    repeated = max(0, int(last.split()[1]) - end["began"])
    shutil.rmtree(folder)
    return Kill(hit, tuple(differs), repeated, perf_counter() - start)


def _until(moment: Moment, folder: Path, seed: int) -> str | None:
    """Run until a moment, kill, and return what the run said last; None where it was through before."""
    with _started(folder, seed) as child:
        assert child.stdout is not None
        last = "start 0"
        for number, line in enumerate(child.stdout):
            last = line.strip()
            if number == moment.said:
                sleep(moment.after_s)
                child.kill()
        return None if child.wait(LIMIT_S) == 0 else last


def _hit(folder: Path, last: str, unbroken: Unbroken) -> str:
    """Return what a kill hit, by what was left on the disk and what the run said last."""
    what, step = last.split()
    if list((folder / "checkpoints").glob(".writing-*")):
        return "write"
    if list((folder / "checkpoints").glob(".removing-*")):
        return "removal"
    if what == "step":
        return "graft" if int(step) in unbroken.graft_steps else "boundary" if int(step) % EVERY == 0 else "step"
    return "save" if what == "save" else "step"


def _log(folder: Path) -> list[list[Any]]:
    """Return the story in the event log of a killed run; its last line may be cut."""
    lines = [
        line for log in folder.glob("run-*/events.jsonl") for line in log.read_text(encoding="utf-8").splitlines(True)
    ]
    return [json.loads(json.dumps(story_of(json.loads(line)))) for line in lines if line.endswith("\n")]


def _folder(root: Path, name: str) -> Path:
    """Make the folder of a run that shares the library."""
    folder = root / name
    folder.mkdir()
    (folder / "library").symlink_to(root / "library")
    return folder


def _started(folder: Path, seed: int, *how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.support.killable", str(folder), str(seed), *how]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _run(folder: Path, seed: int, *how: str) -> None:
    """Resume a run; one that hangs is ended, and leaves no end to compare."""
    with _started(folder, seed, *how) as child:
        try:
            child.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()


def _end(folder: Path) -> dict[str, Any]:
    end: dict[str, Any] = json.loads((folder / "end.json").read_text(encoding="utf-8"))
    return end
