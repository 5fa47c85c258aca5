"""One demo from beginning to end: every arm on every seed, and what came of it."""

from collections.abc import Iterator
from typing import Any

import msgspec

from esper.demos.arms import Arm
from esper.demos.comparison import Comparison, Row
from esper.demos.lanes import Lanes
from esper.demos.measures import Measure
from esper.demos.messages import Failed, Grown, Job, Message, Trained
from esper.demos.rates import Tuning, tuning_of
from esper.demos.tasks import Task, task_named
from esper.errors import ConfigError

QUICK_SEEDS = 2


class Demo:
    """Trains every arm of a task on every seed.

    Args:
        task: Name of the task.
        num_seeds: Seeds to report, counted from 0; None means the task's own number.
        root: Folder for what growing runs write.
        quick: Whether to train for a fifth of the steps, on fewer seeds.

    Raises:
        NotFound: If there is no such task.
        ConfigError: If ``num_seeds`` is not positive, or reaches the seeds that rates were tuned on.
    """

    def __init__(self, task: str, *, num_seeds: int | None = None, root: str, quick: bool = False) -> None:
        self.task: Task = task_named(task)
        self.tuning: Tuning = tuning_of(task)
        self.quick = quick
        count = (QUICK_SEEDS if quick else self.task.num_seeds) if num_seeds is None else num_seeds
        if not 1 <= count <= min(self.tuning.seeds):
            raise ConfigError(
                f"--seeds {count}",
                why=f"seeds are counted from 0, and those from {min(self.tuning.seeds)} on were tuned on",
                todo="give a number from 1",
                code="ESP-2410",
            )
        self.seeds = tuple(range(count))
        self.results: list[Trained] = []
        self.events: list[Grown] = []
        self.root = root

    @property
    def num_jobs(self) -> int:
        """Trainings in all."""
        return len(self.seeds) * len(Arm)

    def run(self) -> Iterator[Message]:
        """Train, and hand out what happens while it happens.

        Raises:
            EsperError: If a training fails; the others are ended.
        """
        with Lanes() as lanes:
            lanes.add(self._job(arm, seed) for arm in Arm if not arm.follows_esper for seed in self.seeds)
            for message in lanes.messages():
                if isinstance(message, Failed):
                    raise message.error()
                if isinstance(message, Grown) and message.arm is Arm.ESPER:
                    self.events.append(message)
                if isinstance(message, Trained):
                    self.results.append(message)
                    lanes.add(self._following(message))
                yield message

    def comparison(self) -> Comparison:
        """Compare the arms; only after ``run``."""
        return Comparison.of(self.results, self.task.measures)

    def to_json(self) -> dict[str, Any]:
        """Return everything as one JSON object; only after ``run``."""
        events = sorted(self.events, key=lambda event: event.seed)
        return {
            "task": self.task.name,
            "seeds": list(self.seeds),
            "metric": _key(self.task.measure),
            "arms": [_arm_json(row, self.task.measures) for row in self.comparison().rows],
            "events": [_event_json(event) for event in events],
            "training_thread_waits": sum(trained.waits for trained in self.results),
            "late_waits": sum(trained.late_waits for trained in self.results),
            **({"quick": True} if self.quick else {}),
        }

    def _job(self, arm: Arm, seed: int) -> Job:
        return Job(
            task=self.task.name, arm=arm, seed=seed, rate=self.tuning.arms[arm].rate, root=self.root, quick=self.quick
        )

    def _following(self, trained: Trained) -> list[Job]:
        """Return the controls that needed to know what esper did on a seed."""
        if trained.arm is not Arm.ESPER:
            return []
        return [
            msgspec.structs.replace(
                self._job(arm, trained.seed),
                flops=trained.train_flops if arm.spends_as_esper else None,
                places=trained.places if arm.is_final else (),
            )
            for arm in Arm
            if arm.follows_esper
        ]


def _arm_json(row: Row, measures: tuple[Measure, ...]) -> dict[str, Any]:
    names = ["metric", *(_key(measure) for measure in measures[1:])]
    tests = {
        f"test_{name}_{part}": value
        for name, test in zip(names, row.tests, strict=True)
        for part, value in (("mean", test.mean), ("sd", test.sd))
    }
    return {"name": row.arm.value, "params": row.params, **tests, "train_flops": row.train_flops}


def _key(measure: Measure) -> str:
    return measure.name.replace(" ", "_")


def _event_json(event: Grown) -> dict[str, Any]:
    wanted = ("seed", "step", "action", "slot", "blueprint", "why", "gain", "kept")
    return {name: getattr(event, name) for name in wanted}
