"""The bench: trains the runs that are not on file yet, two at a time, and hands out what came of all of them."""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Self

import msgspec

from benchmarks.growth.runs import Outcome, Run
from benchmarks.growth.training import perform

LANES = 2


class Bench:
    """Runs by their keys, each trained once.

    Args:
        folder: Where outcomes lie; an interrupted study goes on from what is there.
        texts: Folder of texts, or None.
        lanes: Trainings side by side.
    """

    def __init__(self, folder: Path, *, texts: Path | None = None, lanes: int = LANES) -> None:
        self.folder, self.texts = folder, texts
        folder.mkdir(parents=True, exist_ok=True)
        self._lanes = ProcessPoolExecutor(lanes, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lanes.shutdown(cancel_futures=True)

    def outcomes(self, runs: Sequence[Run]) -> list[Outcome]:
        """Return what came of runs, in their order."""
        missing = {run.key: run for run in runs if not self._file(run).is_file()}
        if missing:
            self._train(list(missing.values()))
        return [msgspec.json.decode(self._file(run).read_bytes(), type=Outcome) for run in runs]

    def _train(self, runs: list[Run]) -> None:
        waiting = [self._lanes.submit(_trained, run, self.folder, self.texts) for run in runs]
        for number, done in enumerate(as_completed(waiting), 1):
            _say(f"{number}/{len(runs)} {_line(done.result())}")

    def _file(self, run: Run) -> Path:
        return self.folder / f"{run.key}.json"


def _trained(run: Run, folder: Path, texts: Path | None) -> Outcome:
    outcome = perform(run, folder, texts)
    written = folder / f".{run.key}.tmp"
    written.write_bytes(msgspec.json.encode(outcome))
    written.rename(folder / f"{run.key}.json")
    return outcome


def _line(outcome: Outcome) -> str:
    run = outcome.run
    return (
        f"{run.task} {run.arm:<22} seed {run.seed:<5} rate {run.rate:<8g} {outcome.steps:>6} steps {outcome.params:>7} params "
        f"{outcome.flops / 1e9:8.2f} GFLOP  val {outcome.validation:6.2f}  {outcome.seconds:5.1f} s"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
