"""Chooses the learning rate of every arm with equal effort: ``python -m esper.demos.tune TASK``.

Every arm is tried on the same grid and the same seeds, none of which is ever reported; where the best rate lies at an edge
of the grid, the grid grows until it does not. The choice is by what the task's arms are compared by, on the validation part;
the test part is never read.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from esper.demos.arms import LONGEST_FIRST, Arm
from esper.demos.lanes import NUM_LANES, Lanes
from esper.demos.messages import Failed, Job, Trained
from esper.demos.rates import Choice, Point, Tuning
from esper.demos.tasks import TASKS, task_named

FIRST_TUNING_SEED = 1000
"""Reported seeds count from 0."""
NUM_TUNING_SEEDS = 4
STEP = 2.0
MOST_EXTENSIONS = 4


class Tuner:
    """Tries learning rates.

    Args:
        task: Name of the task.
        seeds: To try them on.
        lanes: Training processes.
        root: Folder for what growing runs write.
    """

    def __init__(self, task: str, seeds: Sequence[int], lanes: Lanes, root: str) -> None:
        self._task, self._seeds, self._lanes, self._root = task_named(task), tuple(seeds), lanes, root
        self._esper: dict[int, Trained] = {}

    def tune(self) -> Tuning:
        """Choose a rate for every arm, esper's first, because others spend what it spent."""
        arms = {arm: self._choose(arm) for arm in LONGEST_FIRST}
        return Tuning(self._task.name, self._seeds, {arm: arms[arm] for arm in Arm})

    def _choose(self, arm: Arm) -> Choice:
        points = self._points(arm, self._task.rates)
        choice = Choice.among(points, self._task.measure)
        for _ in range(MOST_EXTENSIONS):
            if not choice.edge:
                break
            further = choice.grid[0].rate / STEP if choice.edge < 0 else choice.grid[-1].rate * STEP
            points += self._points(arm, (further,))
            choice = Choice.among(points, self._task.measure)
        if arm is Arm.ESPER:
            self._esper = {trained.seed: trained for trained in self._tried(arm, (choice.rate,))}
        _say(f"{arm.value}: {choice.rate:g}{' AT AN EDGE' if choice.edge else ''}")
        return choice

    def _points(self, arm: Arm, rates: Sequence[float]) -> list[Point]:
        tried = {rate: self._tried(arm, (rate,)) for rate in rates}
        points = [
            Point(
                rate,
                round(statistics.fmean(trained.validation.accuracy for trained in results), 5),
                round(statistics.fmean(trained.validation.loss for trained in results), 5),
            )
            for rate, results in tried.items()
        ]
        for point in points:
            _say(f"  {arm.value:<26} {point.rate:<9g} {100 * point.accuracy:5.1f} %  loss {point.loss:.4f}")
        return points

    def _tried(self, arm: Arm, rates: Sequence[float]) -> list[Trained]:
        self._lanes.add(self._job(arm, rate, seed) for rate in rates for seed in self._seeds)
        results: list[Trained] = []
        for message in self._lanes.messages():
            if isinstance(message, Failed):
                raise message.error()
            if isinstance(message, Trained):
                results.append(message)
        return results

    def _job(self, arm: Arm, rate: float, seed: int) -> Job:
        esper = self._esper.get(seed)
        return Job(
            task=self._task.name, arm=arm, seed=seed, rate=rate, root=self._root,
            flops=esper.train_flops if esper and arm.spends_as_esper else None,
            places=esper.places if esper and arm.is_final else (), read_test=False,
        )  # fmt: skip


def main(arguments: Iterable[str] | None = None) -> None:
    """Choose the rates of one task and write them to a file."""
    parser = argparse.ArgumentParser(prog="python -m esper.demos.tune", description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--seeds", type=int, default=NUM_TUNING_SEEDS, help="how many tuning seeds")
    parser.add_argument("--lanes", type=int, default=NUM_LANES, help="training processes side by side")
    parser.add_argument("--out", type=Path, help="where to write; the file that the demo reads where it is left out")
    given = parser.parse_args(None if arguments is None else list(arguments))
    out = given.out or Path(__file__).parent / "rates" / f"{given.task}.json"
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + given.seeds)
    with tempfile.TemporaryDirectory() as root, Lanes(given.lanes) as lanes:
        tuning = Tuner(given.task, seeds, lanes, root).tune()
    out.write_bytes(msgspec.json.format(msgspec.json.encode(tuning), indent=1) + b"\n")
    _say(f"written to {out}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
