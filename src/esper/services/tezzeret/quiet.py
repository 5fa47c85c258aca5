"""When a worker may turn to what nobody waits for."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from esper.contracts.kernel import CompileJob, JobPhase

ANY_EVERY_S = 10.0
"""However busy it is, so often a worker takes whatever job's turn it is, so that those that finish a kernel have an end."""


class Quiet:
    """Knows when a build was last at work.

    Args:
        after_s: How long none must have been at work.
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self._builds = 0
        self._built_at_s = self._any_at_s = float("-inf")

    @contextmanager
    def during(self, job: CompileJob) -> Iterator[None]:
        """Note that a job is at work."""
        builds = int(job.phase is JobPhase.BUILD)
        self._builds += builds
        try:
            yield
        finally:
            self._builds -= builds
            if builds:
                self._built_at_s = asyncio.get_running_loop().time()

    def lasts_s(self) -> float:
        """Return for how long no build has been at work."""
        return 0.0 if self._builds else asyncio.get_running_loop().time() - self._built_at_s

    @property
    def has_come(self) -> bool:
        """Whether that is long enough."""
        return not self._builds and self.lasts_s() >= self.after_s

    def admits_any(self) -> bool:
        """Say whether a job that finishes a kernel may be taken now."""
        now = asyncio.get_running_loop().time()
        if self.has_come or now - self._any_at_s >= ANY_EVERY_S:
            self._any_at_s = now
            return True
        return False
