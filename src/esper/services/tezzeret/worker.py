"""The forge's worker: claims builds, has them done in child processes, and stores what comes out."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from esper.contracts.ids import new_id
from esper.contracts.kernel import LEVELS, CompileJob
from esper.contracts.topics import SUBMITTED
from esper.errors import BusUnavailable, ConfigError, Conflict, ForgeUnavailable, NotFound, Unavailable
from esper.ports import CompileQueue, Delivery, MessageBus
from esper.runtime.waits import is_set_within, uncut
from esper.services.tezzeret.assignment import Assignment, Desk, Ending
from esper.services.tezzeret.config import WorkerConfig
from esper.services.tezzeret.inference.sealing import Sealer
from esper.services.tezzeret.pool import ForgePool
from esper.services.tezzeret.quiet import Quiet
from esper.services.tezzeret.reviewing import Reviewer
from esper.signing.keys import SigningKey

GROUP = "tezzeret"
"""Consumer group of all workers: an announcement wakes one of them."""
_STOP_LIMIT_S = 1.0
_LANES_PER_CHILD = 2
"""Jobs that are held for each child: while one is built, another is stored and the next one claimed."""


class TezzeretWorker:
    """Builds what waits in a queue until it is closed.

    Args:
        config: How it works.
        queue: Where jobs come from; where it is left out, the store at ``urza_url``.
        bus: Wakes it early and carries its announcements; without one it polls and is silent.

    Attributes:
        endings: How many jobs ended in which way.
        in_hand: How many jobs it holds.
        highest_level: What it builds at most.
        pool: Its children.
        reviewer: Proves kernels again in idle time; None where it is not to.
        outages: How often store, bus or forge did not answer.

    Raises:
        ConfigError: If nothing says where jobs come from, an extension or the executor is not installed, or the backend
            cannot work here.
    """

    def __init__(
        self, config: WorkerConfig | None = None, *, queue: CompileQueue | None = None, bus: MessageBus | None = None
    ) -> None:
        self.config = config or WorkerConfig()
        self.endings: Counter[Ending] = Counter()
        self.in_hand = 0
        self.outages = 0
        if queue is None and self.config.urza_url is None:
            raise ConfigError(
                "the forge has no queue", why="nothing says where builds come from", todo="pass queue=, or set urza_url"
            )
        self.config.check()
        self._queue, self._bus = queue, bus
        key = None if self.config.signing_key is None else SigningKey.read(self.config.signing_key)
        self._sealer = None if key is None else Sealer(key)
        # Forms that nobody vouches for could be loaded by nobody.
        self.highest_level = self.config.optimization_level if key else min(self.config.optimization_level, LEVELS[1])
        children = self.config.children()
        self.pool = ForgePool(children)
        self._news, self._closing, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._draining, self._stopping = asyncio.Event(), asyncio.Event()
        self._quiet = Quiet(self.config.quiet_s)
        after_s, every_s = self.config.review_after_s, self.config.review_every_s
        reviews = after_s is not None
        self.reviewer = Reviewer(children, self._quiet, after_s=after_s or 0.0, every_s=every_s) if reviews else None
        self._ended.set()

    async def run(self) -> None:
        """Work until `close` is called; cancelling it ends the children too."""
        self._ended.clear()
        listening = asyncio.create_task(self._listen())
        try:
            async with self._opened() as queue, asyncio.TaskGroup() as lanes:
                desk = self._desk(queue)
                for _ in range(_LANES_PER_CHILD * self.config.num_workers):
                    lanes.create_task(self._lane(desk))
                if self.reviewer is not None:
                    lanes.create_task(self.reviewer.run(replace(desk, closing=self._stopping)))
        finally:
            listening.cancel()
            try:
                await self.pool.close()
                await asyncio.wait([listening], timeout=_STOP_LIMIT_S)
            finally:
                self._ended.set()
        if listening.done() and not listening.cancelled():
            listening.result()

    async def drain(self, *, limit_s: float) -> None:
        """Stop claiming, let the jobs in hand end, and close; those that are not done in time go back to the queue.

        Raises:
            ForgeUnavailable: If the queue does not let go within ``close_limit_s`` after that.
        """
        self._draining.set()
        self._stopping.set()
        self._news.set()
        if not await is_set_within(self._ended, limit_s):
            await self.close()

    async def close(self) -> None:
        """Stop: jobs in hand go back to the queue, their children are killed, and `run` returns.

        Raises:
            ForgeUnavailable: If the queue does not let go within ``close_limit_s``.
        """
        self._closing.set()
        self._stopping.set()
        self._news.set()
        if not await is_set_within(self._ended, self.config.close_limit_s):
            raise ForgeUnavailable(
                "the forge cannot be closed",
                why=f"its jobs did not end within {self.config.close_limit_s:g} s",
                todo="cancel the task that runs it",
            )

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[CompileQueue]:
        """Have the queue: the one that was handed over, or the store over HTTP."""
        if self._queue is not None or self.config.urza_url is None:
            assert self._queue is not None, "there is one, or an address of one"
            yield self._queue
            return
        from esper.services.clients.urza_client import UrzaClient

        async with UrzaClient(self.config.urza_url, key=self.config.urza_key) as store:
            yield store

    def _desk(self, queue: CompileQueue) -> Desk:
        return Desk(
            worker=new_id("forge"),
            queue=queue,
            bus=self._bus,
            pool=self.pool,
            limits=self.config.limits,
            lease_s=self.config.lease_s,
            highest_level=self.highest_level,
            sealer=self._sealer,
            closing=self._closing,
        )

    async def _lane(self, desk: Desk) -> None:
        """Claim and build, one job after the other."""
        while not (self._closing.is_set() or self._draining.is_set()):
            # Cleared before looking: what is announced while we look wakes us afterwards.
            self._news.clear()
            job = await self._claimed(desk)
            if job is None:
                await self.pool.retire(idle_s=self.config.idle_s)
                await self._pause(self.config.poll_s if self._quiet.has_come else self.config.quiet_s)
                continue
            assignment = Assignment(job, desk)
            self.in_hand += 1
            try:
                with self._quiet.during(job):
                    ending = await assignment.run()
            finally:
                self.in_hand -= 1
            self.endings[ending] += 1
            if assignment.outages:
                self.outages += assignment.outages
                await self._pause(self.config.outage_s)

    async def _claimed(self, desk: Desk) -> CompileJob | None:
        claim = desk.queue.claim(desk.worker, lease_s=self.config.lease_s, finishing=self._quiet.admits_any())
        claiming = asyncio.ensure_future(claim)
        try:
            return await asyncio.shield(claiming)
        except Unavailable:
            self.outages += 1
        except asyncio.CancelledError:
            await self._given_back(claiming, desk)
            raise
        return None

    async def _given_back(self, claiming: "asyncio.Future[CompileJob | None]", desk: Desk) -> None:
        """Release what is claimed too late."""
        await asyncio.wait({claiming}, timeout=_STOP_LIMIT_S)
        if not claiming.done():
            claiming.cancel()
        elif claiming.exception() is None and (job := claiming.result()) is not None:
            with contextlib.suppress(Conflict, NotFound, Unavailable):
                await uncut(desk.queue.release(job.job_id, desk.worker))

    async def _pause(self, seconds: float) -> None:
        """Wait for news, but not for longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    async def _listen(self) -> None:
        """Be woken by announcements; where the bus is away, polling must do."""
        while self._bus is not None and not self._closing.is_set():
            try:
                await self._bus.subscribe(SUBMITTED.stream, GROUP, self._heard)
                return
            except BusUnavailable:
                self.outages += 1
                await asyncio.sleep(self.config.outage_s)

    async def _heard(self, _: Delivery) -> None:
        self._news.set()


__all__ = ["TezzeretWorker", "WorkerConfig"]
