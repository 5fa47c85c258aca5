"""Builds that wait for the forge, handed out under leases."""

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from esper.contracts.kernel import (
    BlueprintStatus,
    CompiledKernelArtifact,
    CompiledKernelContract,
    CompileJob,
    KernelStatus,
    ValidationResult,
)
from esper.errors import Conflict, KernelRejected, NotFound
from esper.ir import digest_of
from esper.ports import BlobStore, Clock
from esper.services.urza.database import Database
from esper.services.urza.models import CompileJobRow, JobStatus, Kernel, ValidationReport
from esper.services.urza.records import job_of, kernel_contract, kernel_row

MAX_ATTEMPTS = 5
"""A build that was tried so often without a result is given up; submitting it again starts over."""
MAX_DEATHS = 2
"""A blueprint that killed so many processes is quarantined (specification: two)."""

_OPEN = (JobStatus.QUEUED, JobStatus.LEASED)


class JobQueue:
    """Implements `esper.ports.CompileQueue`.

    Args:
        database: Where jobs and kernels are kept.
        blobs: Where the bytes of kernels go.
        clock: Measures leases.
    """

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock

    async def claim(self, worker: str, *, lease_s: float) -> CompileJob | None:
        """Take the most urgent job (10 before 1, then the oldest), or None where there is none."""
        if not await self._may_claim():
            return None
        async with self._database.writing() as session:
            await self._take_back_lapsed(session)
            row = await session.scalar(_next_job())
            if row is None:
                return None
            now = self._clock.now_s()
            row.status, row.worker, row.attempts = JobStatus.LEASED, worker, row.attempts + 1
            row.claimed_at, row.lease_until = now, now + lease_s
            row.blueprint.status = BlueprintStatus.COMPILING
            return job_of(row)

    async def renew(self, job_id: str, worker: str, *, lease_s: float) -> None:
        """Keep a job that takes long.

        Raises:
            Conflict: If the lease ran out and somebody else holds the job.
        """
        async with self._database.writing() as session:
            row = await _held(session, job_id, worker)
            row.lease_until = self._clock.now_s() + lease_s

    async def complete(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, report: ValidationResult
    ) -> CompiledKernelContract:
        """Store the kernel with its report, and end the job.

        The bytes are stored and read back before the row is written: a crash in between leaves bytes without a row,
        never a row without bytes.

        Raises:
            KernelRejected: If the artifact is not what it says it is.
            Conflict: If the lease ran out and somebody else holds the job.
            StoreUnavailable: If the bytes could not be stored.
        """
        _check_artifact(artifact, report)
        async with self._database.reading() as session:
            _check_blueprint(await _held(session, job_id, worker), artifact)
        await self._blobs.get(await self._blobs.put(artifact.kernel_binary))
        async with self._database.writing() as session:
            row = await _held(session, job_id, worker)
            kernel = await session.get(Kernel, artifact.artifact_id) or await _added(session, artifact, report)
            row.kernel_id, row.reason = kernel.id, "; ".join(report.reasons)
            _end(row, JobStatus.DONE if report.passed else JobStatus.REJECTED, self._clock)
            row.blueprint.status = BlueprintStatus.VALIDATED if report.passed else BlueprintStatus.REJECTED
            return kernel_contract(kernel)

    async def fail(
        self, job_id: str, worker: str, reason: str, *, retry: bool, killed: bool = False
    ) -> BlueprintStatus:
        """Give a job up, for another try or for good; the reason is stored.

        Returns:
            What became of the blueprint.

        Raises:
            Conflict: If the lease ran out and somebody else holds the job.
        """
        async with self._database.writing() as session:
            row = await _held(session, job_id, worker)
            row.reason = reason
            row.deaths += int(killed)
            await session.flush()
            if killed and await _deaths(session, row.blueprint_id) >= MAX_DEATHS:
                await self._quarantine(session, row)
            elif not retry:
                _end(row, JobStatus.REJECTED, self._clock)
                row.blueprint.status = BlueprintStatus.REJECTED
            else:
                self._return(row)
            return row.blueprint.status

    async def release(self, job_id: str, worker: str) -> None:
        """Return a job untried, because the worker stops.

        Raises:
            Conflict: If the lease ran out and somebody else holds the job.
        """
        async with self._database.writing() as session:
            row = await _held(session, job_id, worker)
            row.attempts -= 1
            self._return(row)

    async def _may_claim(self) -> bool:
        """Look before taking the write lock, so that idle workers do not hold writers up."""
        lapsed = (CompileJobRow.status == JobStatus.LEASED) & (CompileJobRow.lease_until < self._clock.now_s())
        async with self._database.reading() as session:
            return await session.scalar(_some(or_(CompileJobRow.status == JobStatus.QUEUED, lapsed))) is not None

    async def _take_back_lapsed(self, session: AsyncSession) -> None:
        now = self._clock.now_s()
        lapsed = select(CompileJobRow).where(CompileJobRow.status == JobStatus.LEASED, CompileJobRow.lease_until < now)
        for row in await session.scalars(lapsed.options(joinedload(CompileJobRow.blueprint))):
            row.reason = f"worker {row.worker} vanished while it held the job"
            self._return(row)
        await session.flush()

    def _return(self, row: CompileJobRow) -> None:
        """Queue a job again, or give it up after the last try."""
        if row.attempts >= MAX_ATTEMPTS:
            row.reason = f"given up after {row.attempts} tries; the last one: {row.reason}"
            _end(row, JobStatus.FAILED, self._clock)
            row.blueprint.status = BlueprintStatus.UNVALIDATED
        else:
            row.status, row.worker, row.lease_until = JobStatus.QUEUED, None, None

    async def _quarantine(self, session: AsyncSession, row: CompileJobRow) -> None:
        """End every open build of a blueprint that kills."""
        row.blueprint.status = BlueprintStatus.QUARANTINED
        open_jobs = select(CompileJobRow).where(
            CompileJobRow.blueprint_id == row.blueprint_id, CompileJobRow.status.in_(_OPEN)
        )
        reason = f"quarantined, its blueprint killed {MAX_DEATHS} processes; the last time: {row.reason}"
        for job in await session.scalars(open_jobs):
            job.reason = reason
            _end(job, JobStatus.QUARANTINED, self._clock)


def _some(condition: ColumnElement[bool]) -> Select[str]:
    return select(CompileJobRow.id).where(condition).limit(1)


def _next_job() -> Select[CompileJobRow]:
    """Choose the most urgent job; on PostgreSQL other workers skip it instead of waiting for it."""
    order = (CompileJobRow.priority.desc(), CompileJobRow.queued_at, CompileJobRow.id)
    queued = select(CompileJobRow).where(CompileJobRow.status == JobStatus.QUEUED).order_by(*order).limit(1)
    return queued.options(joinedload(CompileJobRow.blueprint)).with_for_update(skip_locked=True, of=CompileJobRow)


async def _held(session: AsyncSession, job_id: str, worker: str) -> CompileJobRow:
    """Return a job that this worker holds; a lease that ran out counts as long as nobody else took the job."""
    row = await session.get(CompileJobRow, job_id, options=[joinedload(CompileJobRow.blueprint)])
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    if row.status is not JobStatus.LEASED or row.worker != worker:
        held = f"{row.worker} holds it" if row.status is JobStatus.LEASED else f"it is {row.status}"
        raise Conflict(
            f"worker {worker} does not hold job {job_id}", why=held, todo="drop the work and claim another job"
        )
    return row


async def _deaths(session: AsyncSession, blueprint_id: str) -> int:
    total = select(func.sum(CompileJobRow.deaths)).where(CompileJobRow.blueprint_id == blueprint_id)
    return int(await session.scalar(total) or 0)


async def _added(session: AsyncSession, artifact: CompiledKernelArtifact, report: ValidationResult) -> Kernel:
    """Write a kernel and its report; only then is it validated, and only if every gate let it pass."""
    kernel = kernel_row(artifact, report)
    session.add(kernel)
    await session.flush()
    session.add(ValidationReport(kernel_id=kernel.id, passed=report.passed, content=report.model_dump(mode="json")))
    await session.flush()
    kernel.validation_passed, kernel.safety_checks_passed = report.passed, report.safety.passed
    kernel.status = KernelStatus.VALIDATED if report.passed else KernelStatus.REJECTED
    return kernel


def _end(row: CompileJobRow, status: JobStatus, clock: Clock) -> None:
    row.status, row.lease_until, row.ended_at = status, None, clock.now_s()


def _check_artifact(artifact: CompiledKernelArtifact, report: ValidationResult) -> None:
    digest = digest_of(artifact.kernel_binary)
    if not digest == artifact.artifact_id == report.kernel_id:
        raise KernelRejected(
            f"artifact {artifact.artifact_id[:80]} was not stored",
            why=f"its bytes have the digest {digest}, its report is about {report.kernel_id[:80]}",
            todo="compile it again",
        )


def _check_blueprint(row: CompileJobRow, artifact: CompiledKernelArtifact) -> None:
    if artifact.blueprint_id != row.blueprint_id:
        raise KernelRejected(
            f"artifact {artifact.artifact_id[:19]} was not stored",
            why=f"it was made from {artifact.blueprint_id[:80]}, the job is about {row.blueprint_id}",
        )
