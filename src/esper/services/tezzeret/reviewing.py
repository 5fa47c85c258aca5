"""Idle time: the most used kernels are proven again with the toolchain of today, and give way to any build."""

import asyncio
from collections import Counter
from dataclasses import replace

from esper.errors import StoreUnavailable
from esper.runtime.supervision import SupervisedChild
from esper.services.tezzeret.assignment import Assignment, Desk, Ending
from esper.services.tezzeret.hardware import hardware
from esper.services.tezzeret.pool import ForgePool, PoolConfig
from esper.services.tezzeret.quiet import Quiet

_NICE = 19
"""Least claim on a processor that the system knows: builds and trainings come first."""
_LOOKS_S = 0.05
"""How often a review at work looks whether a build has come; a build takes about as long."""


class Reviewer:
    """Reviews kernels while a worker has nothing to build.

    It has a child of its own, so that a build never waits for a review, and ends it as soon as one comes. That child is on this
    machine, wherever builds are done: it is this hardware that kernels are measured on.

    Args:
        pool: How the worker's children are kept.
        quiet: Tells when a build was last at work.
        after_s: For how long none must have been.
        every_s: How long to wait where every kernel was looked at.

    Attributes:
        endings: How many reviews ended in which way.
    """

    def __init__(self, pool: PoolConfig, quiet: Quiet, *, after_s: float, every_s: float) -> None:
        self.endings: Counter[Ending] = Counter()
        self._pool = ForgePool(replace(pool, num_children=1, spare_children=0, nice=_NICE, place=SupervisedChild))
        self._quiet, self._after_s, self._every_s = quiet, after_s, every_s

    async def run(self, desk: Desk) -> None:
        """Review until the worker closes.

        Args:
            desk: What the worker's jobs share.
        """
        try:
            while not desk.closing.is_set():
                worked = self._quiet.lasts_s() >= self._after_s and await self._reviewed(desk)
                if not worked:
                    await self._pool.close()
                    await _set_within(desk.closing, self._pause_s())
        finally:
            await self._pool.close()

    def _pause_s(self) -> float:
        left_s = self._after_s - self._quiet.lasts_s()
        return max(left_s, _LOOKS_S) if left_s > 0 else self._every_s

    async def _reviewed(self, desk: Desk) -> bool:
        """Review one kernel; say whether there was one and no build came in between."""
        try:
            job = await desk.queue.review(desk.worker, hardware(), lease_s=desk.lease_s)
        except StoreUnavailable:
            return False
        if job is None:
            return False
        disturbed = asyncio.Event()
        watching = asyncio.create_task(self._watch(disturbed, desk.closing))
        try:
            ending = await Assignment(job, replace(desk, pool=self._pool, closing=disturbed)).run()
        finally:
            watching.cancel()
        self.endings[ending] += 1
        return ending not in (Ending.RELEASED, Ending.LOST)

    async def _watch(self, disturbed: asyncio.Event, closing: asyncio.Event) -> None:
        while self._quiet.has_come and not await _set_within(closing, _LOOKS_S):
            pass
        disturbed.set()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
