"""The forge's worker: claims builds, has them done in child processes, and stores what comes out."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from esper.contracts.ids import new_id
from esper.contracts.kernel import LEVELS, CompileJob
from esper.contracts.topics import SUBMITTED
from esper.errors import BusUnavailable, ConfigError, Conflict, ForgeUnavailable, NotFound, Unavailable
from esper.ports import CompileQueue, Delivery, MessageBus
from esper.runtime.supervision import ChildCommand, SupervisedChild
from esper.services.tezzeret.assignment import Assignment, Desk, Ending, uncut
from esper.services.tezzeret.inference.sealing import Sealer
from esper.services.tezzeret.orders import MACHINE_CODE, Compiled
from esper.services.tezzeret.pool import Child, ForgePool, PoolConfig
from esper.services.tezzeret.quiet import Quiet
from esper.services.tezzeret.reviewing import Reviewer
from esper.services.tezzeret.scratch import no_compiler, no_scratch
from esper.services.tezzeret.screening import ForgeLimits
from esper.signing.keys import SigningKey

GROUP = "tezzeret"
"""Consumer group of all workers: an announcement wakes one of them."""
_STOP_LIMIT_S = 1.0
_LANES_PER_CHILD = 2
"""Jobs that are held for each child: while one is built, another is stored and the next one claimed."""


class WorkerConfig(BaseModel):
    """How a worker works.

    Attributes:
        urza_url: Address of the store; a queue that is handed over is used instead.
        urza_key: Key that the store knows this worker by.
        num_workers: Builds at a time, each in a child process of its own.
        optimization_level: Highest level that is built; builds that ask for more get this one.
        backend: What level 3 makes inference forms with.
        scratch_mb: Size of one file in the folder that a child gets where it makes machine code.
        signing_key: File of the key that seals what levels add, as ``esper keys signing new`` makes it. Without one no form
            for inference is made, and the highest level is ``O1``.
        lease_s: How long a job is held without a sign of life; it is renewed three times as often.
        poll_s: How long to wait for an announcement before looking for jobs anyway.
        deadline_s: Time of one build.
        memory_limit_mb: Memory of one build, on top of what a child takes when it starts.
        extensions: Modules with custom operations that each child imports.
        jobs_per_child: Builds after which a child is replaced.
        fork_per_job: Whether each build gets a process of its own, for designs whose operations are not trusted.
        executor: Where children run: ``processes`` of this machine, or ``ray``, on the machines of a cluster.
        ray_address: The cluster, such as ``10.0.0.7:6379``; without one, a cluster of this machine alone.
        quiet_s: How long no build must have come until kernels are measured and finished; builds that come one after the other
            then do not wait for that, and what is timed has the core for itself.
        review_after_s: How long no build must have come until the most used kernels are proven again; None never does that.
        review_every_s: How long to wait where every one was looked at with this toolchain.
        idle_s: After how long without work a child is ended, to give its 240 MB back.
        outage_s: Pause after the store, the bus or a child was not available.
        close_limit_s: How long closing may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    urza_url: str | None = None
    urza_key: SecretStr | None = None
    num_workers: int = Field(default=1, ge=1, le=256)
    optimization_level: str = Field(default="O2", pattern="^O[0-3]$")
    backend: Compiled = "onnx"
    scratch_mb: int = Field(default=256, ge=1)
    signing_key: Path | None = None
    lease_s: float = Field(default=30.0, gt=0)
    poll_s: float = Field(default=1.0, gt=0)
    deadline_s: float = Field(default=60.0, gt=0)
    memory_limit_mb: int = Field(default=2048, ge=64)
    extensions: tuple[str, ...] = ()
    jobs_per_child: int = Field(default=500, ge=1)
    fork_per_job: bool = False
    executor: str = Field(default="processes", pattern="^(processes|ray)$")
    ray_address: str | None = None
    quiet_s: float = Field(default=0.5, ge=0)
    review_after_s: float | None = Field(default=None, ge=0)
    review_every_s: float = Field(default=600.0, gt=0)
    idle_s: float = Field(default=60.0, gt=0)
    outage_s: float = Field(default=1.0, gt=0)
    close_limit_s: float = Field(default=10.0, gt=0)


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
        _check(queue, self.config)
        self._queue, self._bus = queue, bus
        key = None if self.config.signing_key is None else SigningKey.read(self.config.signing_key)
        self._sealer = None if key is None else Sealer(key)
        # Forms that nobody vouches for could be loaded by nobody.
        self.highest_level = self.config.optimization_level if key else min(self.config.optimization_level, LEVELS[1])
        self._limits = ForgeLimits(memory_limit_mb=self.config.memory_limit_mb, deadline_s=self.config.deadline_s)
        children = PoolConfig(
            num_children=self.config.num_workers,
            limits=self._limits,
            extensions=self.config.extensions,
            jobs_per_child=self.config.jobs_per_child,
            fork_per_job=self.config.fork_per_job,
            backend=self.config.backend,
            scratch_mb=self.config.scratch_mb if self.config.backend == MACHINE_CODE else 0,
            place=_placing(self.config),
        )
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
        try:
            async with asyncio.timeout(limit_s):
                await self._ended.wait()
        except TimeoutError:
            await self.close()

    async def close(self) -> None:
        """Stop: jobs in hand go back to the queue, their children are killed, and `run` returns.

        Raises:
            ForgeUnavailable: If the queue does not let go within ``close_limit_s``.
        """
        self._closing.set()
        self._stopping.set()
        self._news.set()
        try:
            async with asyncio.timeout(self.config.close_limit_s):
                await self._ended.wait()
        except TimeoutError as error:
            raise ForgeUnavailable(
                "the forge cannot be closed",
                why=f"its jobs did not end within {self.config.close_limit_s:g} s",
                todo="cancel the task that runs it",
            ) from error

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
            limits=self._limits,
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


def _placing(config: WorkerConfig) -> Callable[[ChildCommand], Child]:
    if config.executor == "processes":
        return SupervisedChild
    if find_spec("ray") is None:
        why = "executor is 'ray', and ray is not installed"
        raise ConfigError("the forge has no executor", why=why, todo="pip install 'esper-morphogenesis[ray]'")
    from esper.services.tezzeret.ray_child import placed_in

    return placed_in(config.ray_address, num_children=config.num_workers)


def _check(queue: CompileQueue | None, config: WorkerConfig) -> None:
    if queue is None and config.urza_url is None:
        raise ConfigError(
            "the forge has no queue", why="nothing says where builds come from", todo="pass queue=, or set urza_url"
        )
    if config.backend == MACHINE_CODE and (why := no_compiler() or no_scratch()):
        raise ConfigError(
            "the forge cannot make machine code here", why=why, todo="choose another backend", code="ESP-2573"
        )
    for name in config.extensions:
        try:
            found = find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise ConfigError(
                f"extension {name!r} cannot be imported", why="no such module is installed", todo="check its name"
            )


__all__ = ["TezzeretWorker", "WorkerConfig"]
