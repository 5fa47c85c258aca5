"""What ``esper demo`` shows while it runs: events as they happen, and a bar on a terminal."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from esper.demos.arms import Arm
from esper.demos.demo import Demo
from esper.demos.messages import Grown, Message, Started, Trained
from esper.demos.messages import Progress as Reached
from esper.demos.table import event_line, table_of, verdict_lines
from esper.demos.tasks import TASKS

LOG_WIDTH = 200
"""Lines in a log are never folded."""


class Stage:
    """Shows a demo to a person.

    Args:
        demo: What is shown.
        silent: Whether to show nothing but the bar, on standard error, where that is a terminal.
    """

    def __init__(self, demo: Demo, *, silent: bool = False) -> None:
        self._demo, self._silent = demo, silent
        stream = sys.stderr if silent else sys.stdout
        self._console = Console(
            file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else LOG_WIDTH
        )
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            console=self._console, transient=True, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._whole = self._bar.add_task(demo.task.name, total=float(demo.num_jobs))
        self._planned: dict[tuple[Arm, int], int] = {}
        self._share: dict[tuple[Arm, int], float] = {}
        self._introduced = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, message: Message) -> None:
        """Show one thing that happened."""
        if isinstance(message, Started):
            self._planned[message.arm, message.seed] = message.steps
            self._introduce(message)
        elif isinstance(message, Grown) and message.arm is Arm.ESPER:
            self._print(event_line(message, self._demo.task.measure))
        elif isinstance(message, Reached):
            self._advance(message.arm, message.seed, message.step / self._planned[message.arm, message.seed])
        elif isinstance(message, Trained):
            self._advance(message.arm, message.seed, 1.0)
            self._note_done(message.arm)

    def conclude(self) -> None:
        """Show the table, how esper stands beside every control, and what can be done next."""
        comparison = self._demo.comparison()
        self._print("")
        self._console.print(table_of(comparison))
        self._print("")
        for line in verdict_lines(comparison):
            self._print(line)
        self._print(self._waits())
        self._print(f"every event, with its evidence: {Path(self._demo.root) / '*' / 'events.jsonl'}")
        if self._demo.quick:
            self._print("quick: a fifth of the steps, at rates tuned for all of them; these numbers prove nothing")
        other = next(name for name in TASKS if name != self._demo.task.name)
        self._print(
            f"next: esper demo {other} | esper demo {self._demo.task.name} --seeds 10 | add --json for one object"
        )

    def _introduce(self, message: Started) -> None:
        if self._introduced or message.arm is not Arm.ESPER:
            return
        self._introduced = True
        task, seeds = self._demo.task, self._demo.seeds
        self._print(f"{task.about}")
        self._print(
            f"host {message.params:,} params | {len(task.slots)} slots | controller plateau | budget {task.budget}"
            f" | {len(seeds)} seeds"
        )

    def _advance(self, arm: Arm, seed: int, share: float) -> None:
        self._share[arm, seed] = share
        self._bar.update(self._whole, completed=sum(self._share.values()))

    def _note_done(self, arm: Arm) -> None:
        """Where there is no bar, say which arms are done."""
        done = sum(trained.arm is arm for trained in self._demo.results)
        if done == len(self._demo.seeds) and not self._console.is_terminal:
            self._print(f"trained {arm.label} on {done} seeds")

    def _waits(self) -> str:
        results = self._demo.results
        waits, late = sum(trained.waits for trained in results), sum(trained.late_waits for trained in results)
        return f"training waited {waits} times unasked, {late} times for kernels and decisions (late=wait)"

    def _print(self, line: str) -> None:
        if not self._silent:
            self._console.print(line, markup=False, soft_wrap=True)
