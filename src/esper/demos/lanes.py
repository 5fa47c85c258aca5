"""Training processes side by side: jobs go in, messages come out, and nothing is left running."""

import contextlib
import heapq
import itertools
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Self

from esper.demos.arms import LONGEST_FIRST
from esper.demos.messages import Failed, Job, Message, Trained, read_message, written

NUM_LANES = 2
"""The demos are made for two cores."""
END_LIMIT_S = 5.0


class Lanes:
    """A few training processes that share a list of jobs.

    Each is ``python -m esper.demos.worker``, a process of its own: the caller's program is never imported again.

    Args:
        num_lanes: How many.
    """

    def __init__(self, num_lanes: int = NUM_LANES) -> None:
        self._waiting: list[tuple[int, int, int, Job]] = []
        self._count = itertools.count()
        self._num_lanes = num_lanes
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: dict[int, tuple[subprocess.Popen[bytes], Job]] = {}
        self._lines: queue.Queue[tuple[int, bytes | None]] = queue.Queue()
        self._started: list[subprocess.Popen[bytes]] = []
        self._listeners: list[threading.Thread] = []

    def add(self, jobs: Iterable[Job]) -> None:
        """Take jobs in; those of arms that take longest are begun first."""
        for job in jobs:
            heapq.heappush(self._waiting, (LONGEST_FIRST.index(job.arm), job.seed, next(self._count), job))

    def messages(self) -> Iterator[Message]:
        """Hand out what the processes say until every job is done; jobs may be added in between."""
        self._assign()
        while self._busy:
            pid, line = self._lines.get()
            if pid not in self._busy:
                self._idle = [process for process in self._idle if process.pid != pid]
                continue
            process, job = self._busy[pid]
            message = _obituary(process, job) if line is None else read_message(line)
            if isinstance(message, Trained | Failed):
                del self._busy[pid]
                if line is not None:
                    self._idle.append(process)
            yield message
            self._assign()

    def close(self) -> None:
        """End every process."""
        for process in self._started:
            process.terminate()
        for process in self._started:
            _end(process)
        for listener in self._listeners:
            listener.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _assign(self) -> None:
        while self._waiting and (self._idle or len(self._busy) < self._num_lanes):
            process = self._idle.pop() if self._idle else self._start()
            *_, job = heapq.heappop(self._waiting)
            self._busy[process.pid] = (process, job)
            assert process.stdin is not None
            process.stdin.write(written(job))
            process.stdin.flush()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own, so that an interrupt reaches it through this one alone."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "esper.demos.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._started.append(process)
        assert process.stdout is not None
        listener = threading.Thread(target=self._listen, args=(process.pid, process.stdout), daemon=True)
        self._listeners.append(listener)
        listener.start()
        return process

    def _listen(self, pid: int, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                self._lines.put((pid, line))
        self._lines.put((pid, None))


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _obituary(process: subprocess.Popen[bytes], job: Job) -> Failed:
    status = process.wait()
    what = f"the training process of {job.arm} on seed {job.seed} ended with status {status}"
    return Failed(job.arm, job.seed, "EsperError", what, todo="see what it printed above")
