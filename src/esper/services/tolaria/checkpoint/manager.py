"""What a training loop calls: save now or beside the training, load what is whole."""

import asyncio
import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as ended
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from esper.errors import ConfigError, ContractError, NotFound, StoreUnavailable
from esper.kasmina.quiet import preserved_rng
from esper.ports import Clock
from esper.runtime.clock import SystemClock
from esper.services.tolaria.checkpoint.folder import read_checkpoint, write_checkpoint
from esper.services.tolaria.checkpoint.layout import memory_of
from esper.services.tolaria.checkpoint.manifest import Manifest
from esper.services.tolaria.checkpoint.packing import Packed, pack
from esper.services.tolaria.checkpoint.shelf import Retention, Shelf
from esper.services.tolaria.checkpoint.staging import Staging
from esper.services.tolaria.checkpoint.tensors import Part

DEFAULT_FOLDER = "./esper-runs/checkpoints"
UNKNOWN_VERSION = "ESP-3310"
_TAG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class CheckpointManager:
    """Checkpoints of one training in a folder: each whole or not there, known by its digests, and read without running code.

    ```python
    checkpoints = CheckpointManager("runs/checkpoints")
    checkpoints.save(growth.state_dict(), step=growth.spent_steps, blocking=False)
    ...
    growth.load_state_dict(checkpoints.load())
    ```

    Args:
        folder: Where; one training each.
        keep_last: How many of the newest are kept.
        keep_best: How many with the best metric are kept beside them.
        mode: ``"min"`` where a lower metric is better, or ``"max"``.
        keep_tagged: How many of each tag are kept beside them.
        clock: Tells when a checkpoint was written.

    Attributes:
        folder: Where they are.
        waits: How often ``save`` had to wait for the write before it.
        fallbacks: How many damaged checkpoints ``load("latest")`` passed over.
        swept: How many half-written ones a crash had left here.

    Raises:
        ConfigError: If the folder cannot be written, or a setting cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] = DEFAULT_FOLDER,
        *,
        keep_last: int = 3,
        keep_best: int = 1,
        mode: str = "min",
        keep_tagged: int = 3,
        clock: Clock | None = None,
    ) -> None:
        _check_settings(keep_last, keep_best, keep_tagged, mode)
        self._shelf = Shelf(folder, Retention(keep_last, keep_best, keep_tagged, mode == "min"))
        self.folder, self.swept = self._shelf.folder, self._shelf.swept
        self.waits = self.fallbacks = 0
        self._clock = clock or SystemClock()
        self._staging = Staging()
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._lock = Lock()
        with preserved_rng():  # what the log imports may draw, as rich does
            from esper.telemetry.logs import get_logger

            self._log = get_logger("tolaria.checkpoint")

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        metric: float | None = None,
        tag: str = "",
        blocking: bool = True,
    ) -> Path:
        """Write a checkpoint, and remove those that are not kept any more.

        Args:
            state: Plain containers, numbers, strings, None and tensors, nested in any way.
            step: Of the training.
            metric: What checkpoints are compared by; one that is not finite is never the best.
            tag: What it is kept for, such as ``"before-graft"``; each tag has a number of its own.
            blocking: Whether it is on the disk when this returns. Otherwise the state is copied and written beside the
                training; one write is under way at a time, and a call that comes too soon waits for it and counts that.

        Returns:
            The checkpoint's folder; without ``blocking`` it is there after ``wait()``.

        Raises:
            ConfigError: If something in the state cannot be stored; it says where.
            StoreUnavailable: If it cannot be written, or the one before it could not; the older ones are untouched.
        """
        _check_labels(step, tag)
        with self._lock:
            self._settle(counted=True)
            packed = pack(dict(state))
            manifest = Manifest(
                serial=self._shelf.next_serial(), step=step, metric=None if metric is None else float(metric), tag=tag,
                written_at=datetime.fromtimestamp(self._clock.now_s(), UTC).isoformat(), grafts=_graft_table(state),
            )  # fmt: skip
            if blocking:
                memories = [memory_of(t, layout) for t, layout in zip(packed.tensors, packed.layouts, strict=True)]
                self._write(packed, memories, manifest)
            else:
                self._write_beside(packed, manifest)
            return self._shelf.path_for(manifest)

    async def save_checkpoint(
        self, state: Mapping[str, Any], *, step: int | None = None, metric: float | None = None, tag: str = ""
    ) -> Path:
        """Write a checkpoint in a thread of its own; it is on the disk when this returns.

        Args:
            state: As for ``save``; nobody may change its tensors meanwhile.
            step: Of the training; where it is left out, the state's own ``step`` or ``spent_steps``, or else 0.
            metric: As for ``save``.
            tag: As for ``save``.
        """
        own = state.get("step", state.get("spent_steps", 0)) if step is None else step
        return await asyncio.to_thread(self.save, state, step=own, metric=metric, tag=tag)

    def load(self, which: str | os.PathLike[str] = "latest") -> dict[str, Any]:
        """Return a state, to the bit, tensors on the CPU.

        Args:
            which: ``"latest"``, ``"best"``, or a checkpoint's folder or its name. ``"latest"`` passes over damaged ones,
                with a warning in the log, and counts them; every other choice is that one or an error.

        Raises:
            NotFound: If there is none.
            ContractError: If it is damaged, or of a version that is not known; it says which file and why.
            StoreUnavailable: If the write under way failed, or the disk cannot be read.
        """
        self.wait()
        try:
            with self._shelf.reading():
                return self._newest_whole() if which == "latest" else read_checkpoint(self._chosen(which))
        except OSError as error:
            raise StoreUnavailable(f"checkpoints in {self.folder} cannot be read", why=str(error)) from error

    def paths(self) -> list[Path]:
        """Return the folders of all checkpoints, the newest first."""
        return self._shelf.paths()

    def wait(self) -> None:
        """Wait until nothing is being written any more.

        Raises:
            StoreUnavailable: If that write failed.
        """
        with self._lock:
            self._settle(counted=False)

    def close(self) -> None:
        """Wait as ``wait`` does, and end the thread that writes."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _settle(self, *, counted: bool) -> None:
        writing = self._writing
        if writing is None:
            return
        if counted and not writing.done():
            self.waits += 1
        ended([writing])  # where an interrupt ends this, the memory is still being written from
        self._writing = None
        writing.result()

    def _write_beside(self, packed: Packed, manifest: Manifest) -> None:
        memories = self._staging.copied(packed.tensors, packed.layouts)
        packed.tensors = []  # the caller's own, which change from now on
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="esper-checkpoint")
        self._writing = self._pool.submit(self._write, packed, memories, manifest)

    def _write(self, packed: Packed, memories: list[Tensor], manifest: Manifest) -> None:
        names = _unique(packed.names)
        parts = [Part(*part) for part in zip(names, packed.layouts, memories, strict=True)]
        path = self._shelf.path_for(manifest)
        try:
            with self._shelf.writing():
                write_checkpoint(path, packed.tree, parts, manifest)
                self._shelf.prune()
        except OSError as error:
            self._log.warning("checkpoint_not_written", path=str(path), why=str(error))  # it may never be asked for
            raise StoreUnavailable(
                f"checkpoint {path} cannot be written",
                why=str(error),
                todo="free space or choose another folder; the checkpoints before it are untouched",
                code="ESP-4220",
            ) from error

    def _newest_whole(self) -> dict[str, Any]:
        last: ContractError | None = None
        for path in self.paths():
            try:
                return read_checkpoint(path)
            except ContractError as error:
                if error.code == UNKNOWN_VERSION:
                    raise  # it is whole, and going back behind it would lose what it has
                last = error
                self.fallbacks += 1
                self._log.warning("checkpoint_passed_over", path=str(path), what=error.what, why=error.why)
        why = "the folder has none" if last is None else f"none of {self.fallbacks} is whole; {last.what}: {last.why}"
        raise NotFound(f"a checkpoint in {self.folder}", why=why, todo="start anew", code="ESP-5030") from last

    def _chosen(self, which: str | os.PathLike[str]) -> Path:
        if which == "best":
            best = self._shelf.best()
            if best:
                return best[0]
            raise NotFound(
                f"a best checkpoint in {self.folder}",
                why="none was saved with a finite metric",
                todo='give save a metric=, or load "latest"',
                code="ESP-5030",
            )
        named = self.folder / which
        path = named if named.exists() else Path(which)
        if path.is_dir():
            return path
        known = ", ".join(path.name for path in self.paths()) or "none"
        raise NotFound(f"checkpoint {str(which)!r}", why=f"there are: {known}", todo="take one", code="ESP-5030")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _graft_table(state: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    training = state.get("training")
    entries = training.get("entries") if isinstance(training, dict) else None
    return entries if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) else None


def _unique(names: list[str]) -> list[str]:
    """Return names of which no two are equal, as a key may contain a dot."""
    used = {"__metadata__"}
    unique = []
    for index, name in enumerate(names):
        own = name if name not in used else f"{name}#{index}"
        used.add(own)
        unique.append(own)
    return unique


def _check_settings(keep_last: int, keep_best: int, keep_tagged: int, mode: str) -> None:
    for name, value, least in (
        ("keep_last", keep_last, 1),
        ("keep_best", keep_best, 0),
        ("keep_tagged", keep_tagged, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r}", todo=f"give {least} or more", code="ESP-2181")
    if mode not in ("min", "max"):
        raise ConfigError(f"mode={mode!r}", todo='use "min" or "max"', code="ESP-2181")


def _check_labels(step: int, tag: str) -> None:
    if not isinstance(step, int) or step < 0:
        raise ConfigError(f"step={step!r}", todo="give the number of the step, from 0", code="ESP-2181")
    if tag and not _TAG.fullmatch(tag):
        raise ConfigError(f"tag={tag!r}", why="it becomes part of a name", todo="use a-z, 0-9 and -", code="ESP-2181")
