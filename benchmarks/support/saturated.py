"""A forge that always has work, in a process group of its own that can be held and let go."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.support.report import ROOT

IN_HAND = 4
"""Designs that wait or are built at any moment."""


@dataclass
class Saturated:
    """The forge, seen from outside.

    Attributes:
        process: Its parent process; its children are in the same group and on the same core.
    """

    process: subprocess.Popen[bytes]

    def hold(self) -> None:
        """Stop every process of it where it is."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def kernels(self) -> int:
        """Return how many kernels came out since the last call."""
        assert self.process.stdout is not None
        found = 0
        with suppress(BlockingIOError):
            while line := os.read(self.process.stdout.fileno(), 4096):
                found += line.count(b"\n")
        if self.process.poll() is not None:
            raise RuntimeError(f"the forge ended with {self.process.returncode}: no figure means anything")
        return found


@contextmanager
def saturated(core: int) -> Iterator[Saturated]:
    """Run it on one core until the block ends; it is at work, and held, when the block begins."""
    command = [sys.executable, "-m", "benchmarks.support.saturated", str(core)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    assert running.stdout is not None
    try:
        if not running.stdout.readline():
            raise RuntimeError("the forge did not start")
        os.set_blocking(running.stdout.fileno(), False)
        found = Saturated(running)
        found.hold()
        yield found
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        running.stdout.close()


async def _forge_for_ever() -> None:
    from benchmarks.tezzeret import designs, forge

    async with forge(designs(), workers=1) as made:

        async def lane() -> None:
            while True:
                await made.forge("O0")
                print("kernel", flush=True)

        async with asyncio.TaskGroup() as lanes:
            for _ in range(IN_HAND):
                lanes.create_task(lane())


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    asyncio.run(_forge_for_ever())
