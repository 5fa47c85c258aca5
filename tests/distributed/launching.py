"""Real processes of one process group: started, waited for, and ended by their own ids."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 100.0


@dataclass(frozen=True)
class Ended:
    """How a rank ended.

    Attributes:
        code: Its exit code; negative where a signal ended it.
        stderr: What it said.
        result: What it wrote down, or None where it did not come so far.
    """

    code: int
    stderr: str
    result: Any


def launch(scenario: str, folder: Path, *, size: int = 2, limit_s: float = LIMIT_S, **options: Any) -> list[Ended]:
    """Run a scenario, such as ``runs.trained``, in ``size`` processes, and return how each ended."""
    place = folder / f"group-{len(list(folder.glob('group-*')))}"
    place.mkdir(parents=True)
    ranks = [_start(scenario, folder, place, rank, size, options) for rank in range(size)]
    try:
        said = [rank.communicate(timeout=limit_s)[1] for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    return [_ended(rank, place / f"rank{index}.json", said[index]) for index, rank in enumerate(ranks)]


def results(scenario: str, folder: Path, *, size: int = 2, **options: Any) -> list[Any]:
    """Run a scenario that succeeds, and return what each rank wrote down."""
    ended = launch(scenario, folder, size=size, **options)
    for rank, process in enumerate(ended):
        assert process.code == 0, f"rank {rank}: {process.stderr[-3000:]}"
    return [process.result for process in ended]


def _start(
    scenario: str, folder: Path, place: Path, rank: int, size: int, options: dict[str, Any]
) -> "subprocess.Popen[str]":
    task = {"scenario": scenario, "rank": rank, "size": size, "folder": str(folder), "place": str(place), **options}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.worker", json.dumps(task)],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Return what the processes of a group are started with."""
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def _ended(rank: "subprocess.Popen[str]", written: Path, said: str) -> Ended:
    return Ended(rank.returncode, said, json.loads(written.read_text()) if written.exists() else None)
