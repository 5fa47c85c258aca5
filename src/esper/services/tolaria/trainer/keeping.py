"""Checkpoints of a training: when they are written, and going on from one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.errors import ConfigError, NotFound, StoreUnavailable
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint
from esper.services.tolaria.distributed.team import Team, told_text
from esper.services.tolaria.trainer.choices import check

if TYPE_CHECKING:
    from esper.services.tolaria.growth import Growth
    from esper.services.tolaria.trainer.loop import Loop

FOLDER = "checkpoints"
BEFORE_GRAFT = "before-graft"
KEY = "trainer"
VERSION = 1


@dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are written, below the run's folder.

    Attributes:
        every_epochs: Passes over the training data between two of them.
        every_steps: Optimizer steps between two of them; takes the place of ``every_epochs``.
        keep_last: How many of the newest are kept.
        keep_best: How many of the best by the monitored metric are kept beside them.
        before_graft: Whether the state before each graft is kept too.
        asynchronous: Whether they are written beside the training.

    Raises:
        ConfigError: If they would never come.
    """

    every_epochs: int = 1
    every_steps: int | None = None
    keep_last: int = 3
    keep_best: int = 1
    before_graft: bool = True
    asynchronous: bool = True

    def __post_init__(self) -> None:
        steps = self.every_steps
        check(
            self.every_epochs >= 1, f"every_epochs={self.every_epochs}", why="it counts epochs", todo="give 1 or more"
        )
        check(steps is None or steps >= 1, f"every_steps={steps}", why="it counts steps", todo="give 1 or more")


class Keeper:
    """Writes the checkpoints of a run; one that cannot be written is counted and shown, and training goes on.

    Args:
        when: When.
        folder: Of the run.
        growth: The attached run.
        team: The processes: each gives its state, and the leader writes.
        mode: ``min`` or ``max``: when a metric is best.

    Attributes:
        failures: Checkpoints that could not be written.
        last: The last checkpoint, or None.
    """

    def __init__(
        self, when: Checkpoints, folder: Path, growth: "Growth", *, mode: str, team: Team | None = None
    ) -> None:
        self.failures = 0
        self.last: Path | None = None
        self._when, self._growth, self._team = when, growth, team or Team()
        self._manager = (
            CheckpointManager(folder / FOLDER, keep_last=when.keep_last, keep_best=when.keep_best, mode=mode)
            if self._team.leads
            else None
        )
        self._saved_at = -1

    def whole(self, loop: "Loop", *, over: bool, better: bool | None) -> None:
        """Write what is due after a whole step.

        Args:
            loop: The loop.
            over: Whether a pass over the data ended with it.
            better: Whether it gave the best metric so far; None where nothing was measured.
        """
        when, step = self._when, self._growth.planned_step
        if when.every_steps is not None:
            due = step % when.every_steps == 0
        else:
            due = over and len(loop.record.losses) % when.every_epochs == 0
        if due or better:
            metric = None if better is None else loop.monitored
            self.save(loop, metric=metric, blocking=not when.asynchronous)

    def before_graft(self, loop: "Loop") -> None:
        """Write the state before a graft; who resumes from it has neither the graft nor the decision to make it."""
        if self._when.before_graft:
            self.save(loop, tag=BEFORE_GRAFT, blocking=not self._when.asynchronous)

    def last_of_all(self, loop: "Loop") -> None:
        """Write where the run ends, where that is not on the disk already, and wait for it."""
        if self._team.any(self._saved_at != self._growth.spent_steps):
            self.save(loop, blocking=True)
        if self._manager is not None:
            self._tried(loop, self._manager.wait)

    def save(self, loop: "Loop", *, metric: float | None = None, tag: str = "", blocking: bool) -> None:
        """Write a checkpoint now; every process gives its state, and the leader writes."""
        manager = self._manager
        state = {**self._growth.state_dict(copy=False), KEY: {"version": VERSION, "loop": loop.state_dict()}}
        if tag == BEFORE_GRAFT:
            state["consultation"] = {}

        def write() -> None:
            if manager is None:
                return
            step = self._growth.planned_step
            self.last = manager.save(state, step=step, metric=metric, tag=tag, blocking=blocking)

        if self._tried(loop, write) and not tag:
            self._saved_at = self._growth.spent_steps

    def close(self) -> None:
        """End the thread that writes; what could not be written has been counted."""
        try:
            if self._manager is not None:
                self._manager.close()
        except StoreUnavailable:
            self.failures += 1

    def _tried(self, loop: "Loop", act: Any) -> bool:
        try:
            act()
        except StoreUnavailable as error:
            self.failures += 1
            loop.say(f"a checkpoint is missing: {error}")
            return False
        return True


def resume(which: str | Path, root: Path, growth: "Growth", loop: "Loop", team: Team) -> None:
    """Go on from a checkpoint; each process reads it, and the leader says which.

    Args:
        which: ``latest`` of all runs below ``root``; or a checkpoint, or the folder of a run.
        root: Folder of all runs.
        growth: Attached to fresh parts.
        loop: Not begun.
        team: The processes.

    Raises:
        NotFound: If there is none.
        ConfigError: If it was not written by a trainer.
    """
    path = Path(told_text(team, lambda: str(_found(which, root))))
    with team.together("reading the checkpoint"):
        state = _of_folder(path) if path.name == FOLDER else read_checkpoint(path)
    own = state.pop(KEY, None)
    if own is None or own["version"] != VERSION:
        raise ConfigError(
            f"resuming from {which}",
            why="it was not written by this version of the trainer",
            todo="load it with growth.load_state_dict in a loop of your own",
            code="ESP-2711",
        )
    growth.load_state_dict(state)
    loop.load_state_dict(own["loop"])


def _found(which: str | Path, root: Path) -> Path:
    """Return a checkpoint, or the folder of a run's checkpoints, the newest of which is meant."""
    if which != "latest":
        path = Path(which)
        return path / FOLDER if (path / FOLDER).is_dir() else _existing(path)
    newest: dict[Path, int] = {}
    for folder in root.glob(f"*/{FOLDER}"):
        written = [path.stat().st_mtime_ns for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
        if written:
            newest[folder] = max(written)
    if not newest:
        raise NotFound(
            f"a checkpoint below {root}", why="no run there has one", todo="leave resume= out", code="ESP-5040"
        )
    return max(newest, key=lambda folder: newest[folder])


def _of_folder(folder: Path) -> dict[str, Any]:
    manager = CheckpointManager(folder)
    try:
        return manager.load("latest")
    finally:
        manager.close()


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise NotFound(
            f"checkpoint {path}", why="there is no such folder", todo='give one, or "latest"', code="ESP-5040"
        )
    return path
