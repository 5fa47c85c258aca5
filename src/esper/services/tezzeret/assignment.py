"""One claimed job, from its start to its stored end."""

import asyncio
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

from esper.contracts.events import CompilationEvent
from esper.contracts.kernel import (
    BlueprintStatus,
    CompiledKernelArtifact,
    CompileJob,
    InferenceArtifact,
    JobPhase,
    KernelStatus,
    ValidationResult,
)
from esper.contracts.topics import COMPILATIONS
from esper.errors import (
    BusUnavailable,
    ChildDied,
    Conflict,
    DeadlineExceeded,
    EsperError,
    KernelRejected,
    NotFound,
    Unavailable,
)
from esper.ports import CompileQueue, MessageBus
from esper.runtime.waits import is_set_within, uncut
from esper.services.tezzeret.inference.sealing import Sealer
from esper.services.tezzeret.orders import Additions, order_of
from esper.services.tezzeret.pool import ForgePool
from esper.services.tezzeret.screening import ForgeLimits, knows_all_operations, screen

_STORE_TRIES = 5
_STORE_PAUSE_S = 0.5
_LONGEST_REASON = 2_000


class Ending(StrEnum):
    """How a job left the worker's hands; the first five are statuses of compilation events."""

    COMPILED = "compiled"
    FINISHED = "finished"
    REJECTED = "rejected"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    RELEASED = "released"
    LOST = "lost"


@dataclass(frozen=True)
class _Built:
    artifact: CompiledKernelArtifact
    report: ValidationResult


@dataclass(frozen=True)
class _Broken:
    reason: str
    retry: bool
    killed: bool = False


@dataclass(frozen=True)
class _Withdrawn:
    """The worker stops before the job is done, or holds it no more."""


_Attempt: TypeAlias = _Built | Additions | _Broken | _Withdrawn


@dataclass(frozen=True)
class Desk:
    """What a worker's jobs share.

    Attributes:
        worker: Name under which jobs are held.
        queue: Where they come from, and where results go.
        bus: Where progress is announced, or None.
        pool: Where they are built.
        limits: What one build may take.
        lease_s: How long a job is held without a sign of life.
        highest_level: Level that builds get at most.
        sealer: Seals what levels add, or None where no form is made.
        closing: Set when the worker stops.
    """

    worker: str
    queue: CompileQueue
    bus: MessageBus | None
    pool: ForgePool
    limits: ForgeLimits
    lease_s: float
    highest_level: str
    sealer: Sealer | None
    closing: asyncio.Event


class Assignment:
    """Works on one job.

    Args:
        job: What was claimed.
        desk: What the worker's jobs share.

    Attributes:
        outages: How often store, bus or forge did not answer.
    """

    def __init__(self, job: CompileJob, desk: Desk) -> None:
        self.outages = 0
        self._job, self._desk = job, desk
        self._began_s = asyncio.get_running_loop().time()
        self._lost = asyncio.Event()

    async def run(self) -> Ending:
        """Build, store, then announce; a job that is cut short goes back to the queue.

        Returns:
            How the job ended; ``LOST`` where somebody else holds it now, or the store did not take the result.
        """
        if self._job.phase is JobPhase.BUILD:
            await self._announce("started")
        done = asyncio.Event()
        keeping = asyncio.create_task(self._keep_lease(done))
        try:
            return await self._settled(await self._attempted())
        except asyncio.CancelledError:
            await self._released()
            raise
        finally:
            done.set()
            await asyncio.wait([keeping])

    async def _attempted(self) -> _Attempt:
        """Build until it is done, the worker stops, or the job was taken away."""
        work = asyncio.create_task(self._built())
        endings = {asyncio.create_task(event.wait()) for event in (self._desk.closing, self._lost)}
        try:
            await asyncio.wait({work, *endings}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else _Withdrawn()
        finally:
            # A build that is cut short kills its child, which takes a moment.
            unfinished = {task for task in (work, *endings) if not task.done()}
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)

    async def _built(self) -> _Attempt:
        try:
            if knows_all_operations(self._job.architecture_ir):
                await asyncio.to_thread(screen, self._job.architecture_ir, self._desk.limits)
            order = order_of(self._job, self._desk.highest_level)
            if self._job.phase is not JobPhase.BUILD:
                added = await self._desk.pool.finish(order)
                return replace(added, forms=self._sealed(added.forms))
            artifact, report = await self._desk.pool.forge(order)
            return _Built(artifact.model_copy(update={"inference": self._sealed(artifact.inference)}), report)
        except (ChildDied, DeadlineExceeded) as death:
            return _Broken(str(death), retry=True, killed=True)
        except Unavailable as outage:
            self.outages += 1
            return _Broken(str(outage), retry=True)
        except EsperError as refusal:
            return _Broken(str(refusal), retry=False)

    def _sealed(self, forms: tuple[InferenceArtifact, ...]) -> tuple[InferenceArtifact, ...]:
        return forms if self._desk.sealer is None else self._desk.sealer.sealed(forms, self._job.blueprint_id)

    async def _settled(self, attempt: _Attempt) -> Ending:
        """Store what came out, and tell the others; the store's outages are waited out for a while."""
        if isinstance(attempt, _Withdrawn):
            return await self._released()
        for _ in range(_STORE_TRIES):
            try:
                return await uncut(self._stored(attempt))
            except Unavailable:
                self.outages += 1
                await asyncio.sleep(_STORE_PAUSE_S)
            except KernelRejected as refusal:
                attempt = _Broken(str(refusal), retry=False)
            except (Conflict, NotFound):
                break
        return Ending.LOST

    async def _stored(self, attempt: _Built | _Broken | Additions) -> Ending:
        match attempt:
            case _Built():
                return await self._completed(attempt)
            case Additions():
                return await self._finished(attempt)
            case _Broken():
                return await self._failed(attempt)

    async def _finished(self, added: Additions) -> Ending:
        job, desk = self._job, self._desk
        shortfall = added.shortfall or self._lowered()
        await desk.queue.finish(job.job_id, desk.worker, added.forms, added.performance, shortfall, added.report)
        await self._announce(Ending.FINISHED, kernel_id=job.kernel_id, reason=shortfall)
        return Ending.FINISHED

    def _lowered(self) -> str:
        """Return why this forge makes less than the build asks for, or nothing."""
        wanted, highest = self._job.build.level, self._desk.highest_level
        if wanted <= highest:
            return ""
        without = "it has no signing key" if self._desk.sealer is None else "it is set so"
        return f"this forge makes {highest} and nothing above it: {without}"

    async def _completed(self, built: _Built) -> Ending:
        kernel = await self._desk.queue.complete(self._job.job_id, self._desk.worker, built.artifact, built.report)
        ending = Ending.COMPILED if kernel.status is KernelStatus.VALIDATED else Ending.REJECTED
        await self._announce(ending, kernel_id=kernel.kernel_id, reason="; ".join(built.report.reasons))
        return ending

    async def _failed(self, broken: _Broken) -> Ending:
        became = await self._desk.queue.fail(
            self._job.job_id, self._desk.worker, broken.reason, retry=broken.retry, killed=broken.killed
        )
        # A kernel that cannot be finished stays proven.
        ending = Ending.FAILED if broken.retry or self._job.phase is not JobPhase.BUILD else Ending.REJECTED
        if became is BlueprintStatus.QUARANTINED:
            ending = Ending.QUARANTINED
        await self._announce(ending, reason=broken.reason)
        return ending

    async def _released(self) -> Ending:
        try:
            await uncut(self._desk.queue.release(self._job.job_id, self._desk.worker))
        except (Conflict, NotFound, Unavailable):
            return Ending.LOST  # the lease runs out by itself
        return Ending.RELEASED

    async def _keep_lease(self, done: asyncio.Event) -> None:
        """Renew three times per lease; where it was lost, the work ends."""
        while not await is_set_within(done, self._desk.lease_s / 3):
            try:
                await self._desk.queue.renew(self._job.job_id, self._desk.worker, lease_s=self._desk.lease_s)
            except Unavailable:
                continue
            except (Conflict, NotFound):  # somebody else holds it, or it was withdrawn
                self._lost.set()
                return

    async def _announce(self, status: str, *, kernel_id: str | None = None, reason: str = "") -> None:
        if self._desk.bus is None:
            return
        elapsed_s = asyncio.get_running_loop().time() - self._began_s
        event = CompilationEvent(
            blueprint_id=self._job.blueprint_id,
            status=status,
            kernel_id=kernel_id,
            reason=reason[:_LONGEST_REASON],
            elapsed_ms=elapsed_s * 1e3,
        )
        try:
            await self._desk.bus.publish(COMPILATIONS.stream, event)
        except BusUnavailable:
            self.outages += 1
