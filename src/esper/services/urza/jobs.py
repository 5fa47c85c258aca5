"""Builds that wait for the forge, handed out under leases."""

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import Session, joinedload

from esper.contracts.kernel import (
    PUBLISHED_LEVEL,
    BlueprintStatus,
    BuildSpec,
    CompiledKernelArtifact,
    CompiledKernelContract,
    CompileJob,
    JobPhase,
    KernelStatus,
    ValidationResult,
)
from esper.contracts.store_calls import MAX_REASON, ArtifactHead, Claim, Renewal, stated
from esper.errors import KernelRejected
from esper.ir import digest_of
from esper.ports import Clock
from esper.services.urza.database import Database
from esper.services.urza.forms import check_forms, finishing_job, record_forms, touch_forms
from esper.services.urza.holding import blueprint_held, deaths, demote, end, held
from esper.services.urza.judging import judge
from esper.services.urza.keeper import BlobKeeper
from esper.services.urza.line import Line
from esper.services.urza.models import CompileJobRow, JobStatus, Kernel
from esper.services.urza.queueing import in_turn
from esper.services.urza.records import job_of, kernel_contract, kernel_row

MAX_ATTEMPTS = 5
"""A build that was tried so often without a result is given up; submitting it again starts over."""
MAX_DEATHS = 2
"""A blueprint that killed so many processes is quarantined (specification: two)."""

_LAPSED_EVERY_S = 1.0
"""How often a worker that finds one job after the other looks for leases that ran out."""

_OPEN = (JobStatus.QUEUED, JobStatus.LEASED)


class JobQueue:
    """Implements `esper.ports.CompileQueue`.

    Args:
        database: Where jobs and kernels are kept.
        keeper: Where the bytes of kernels go.
        clock: Measures leases.
        line: Is told when it moves.
    """

    def __init__(self, database: Database, keeper: BlobKeeper, clock: Clock, line: Line) -> None:
        self._database, self._keeper, self._clock, self._line = database, keeper, clock, line
        self._found, self._looked_at = False, 0.0

    async def claim(self, worker: str, *, lease_s: float, finishing: bool = True) -> CompileJob | None:
        """Take the job whose turn it is (see `esper.services.urza.queueing`), or None where there is none.

        Args:
            worker: Who takes it.
            lease_s: For how long it is theirs without a sign of life.
            finishing: Whether a job that finishes a kernel will do.

        Raises:
            ContractError: If nobody takes a job by that name, or for that long.
        """
        with stated():
            Claim(worker=worker, lease_s=lease_s, finishing=finishing)
        # Where there was a job there are more, as a rule.
        if not self._found and not await self._may_claim(finishing):
            return None
        now = self._clock.now_s()
        looks = not self._found or now - self._looked_at >= _LAPSED_EVERY_S
        self._looked_at = now if looks else self._looked_at

        def claimed(session: Session) -> CompileJob | None:
            if looks:
                self._take_back_lapsed(session)
            row = session.scalar(_NEXT[finishing])
            if row is None:
                return None
            row.status, row.worker, row.attempts = JobStatus.LEASED, worker, row.attempts + 1
            row.claimed_at, row.lease_until = now, now + lease_s
            waits = row.blueprint.status in (BlueprintStatus.UNVALIDATED, BlueprintStatus.REJECTED)
            if waits and row.phase is JobPhase.BUILD:
                row.blueprint.status = BlueprintStatus.COMPILING
            return job_of(row)

        job = await self._database.apply(claimed)
        self._found = job is not None
        if job is not None:
            self._line.moved()
        return job

    async def renew(self, job_id: str, worker: str, *, lease_s: float) -> None:
        """Keep a job that takes long.

        Raises:
            ContractError: If no lease is that long.
            Conflict: If the lease ran out and somebody else holds the job.
        """
        with stated():
            Renewal(worker=worker, lease_s=lease_s)

        def renewed(session: Session) -> None:
            row = held(session, job_id, worker)
            row.lease_until = self._clock.now_s() + lease_s

        await self._database.apply(renewed)

    async def complete(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, report: ValidationResult
    ) -> CompiledKernelContract:
        """Store the kernel with its report and its forms, and end the job.

        Where it was not measured, or the build asks for a higher level than the artifact has, a job that finishes the kernel
        is queued behind every build.

        The bytes are stored and read back before the row is written: a crash in between leaves bytes without a row,
        never a row without bytes.

        Raises:
            ContractError: If no store takes what is said of the artifact, such as the name of its device.
            KernelRejected: If the artifact is not what it says it is.
            Conflict: If the lease ran out and somebody else holds the job.
            StoreUnavailable: If the bytes could not be stored.
        """
        with stated():
            ArtifactHead.of(artifact)
        _check_artifact(artifact, report)
        check_forms(artifact.inference)
        kept = [artifact.kernel_binary, *(made.data for made in artifact.inference)]

        def needed(session: Session) -> None:
            """Look before bytes are stored, so that who lost the lease leaves nothing behind."""
            _check_blueprint(job_id, blueprint_held(session, job_id, worker), artifact.blueprint_id)
            for data in kept:
                self._keeper.needed(session, digest_of(data), len(data))

        await self._database.apply(needed)
        for data in kept:
            await self._keeper.store(data)
        return await self._record(job_id, worker, artifact, len(artifact.kernel_binary), report)

    async def complete_uploaded(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, report: ValidationResult
    ) -> CompiledKernelContract:
        """Do the same for a kernel whose bytes were put into `blobs` before.

        Args:
            job_id: The job.
            worker: Who holds it.
            artifact: What the forge made, its ``kernel_binary`` left empty.
            report: What the validator found.

        Raises:
            NotFound: If its bytes are not there.
            KernelRejected: If the report is about another kernel.
            Conflict: If the lease ran out and somebody else holds the job.
        """
        if artifact.artifact_id != report.kernel_id:
            raise _mixed_up(artifact, artifact.artifact_id, report)
        await self._check_holder(job_id, worker, artifact.blueprint_id)
        size = await self._keeper.touch(artifact.artifact_id)
        await touch_forms(self._keeper, artifact.inference)
        return await self._record(job_id, worker, artifact, size, report)

    async def _check_holder(self, job_id: str, worker: str, blueprint_id: str) -> None:
        """Look before bytes are stored, so that who lost the lease leaves nothing behind."""
        await self._database.apply(
            lambda session: _check_blueprint(job_id, blueprint_held(session, job_id, worker), blueprint_id)
        )

    async def _record(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, size_bytes: int, report: ValidationResult
    ) -> CompiledKernelContract:
        def recorded(session: Session) -> CompiledKernelContract:
            row = held(session, job_id, worker)
            _check_blueprint(job_id, row.blueprint_id, artifact.blueprint_id)
            kernel = session.get(Kernel, artifact.artifact_id)
            if kernel is None:
                kernel = kernel_row(artifact, size_bytes)
                session.add(kernel)
            if kernel.status is KernelStatus.PENDING_VALIDATION:
                judge(session, kernel, report)
            record_forms(session, kernel.id, artifact.inference)
            row.kernel_id, row.reason = kernel.id, "; ".join(report.reasons)
            end(row, JobStatus.DONE if report.passed else JobStatus.REJECTED, self._clock)
            if not report.passed:
                demote(session, row, BlueprintStatus.REJECTED)
            elif row.blueprint.status is not BlueprintStatus.DEPLOYED:
                row.blueprint.status = BlueprintStatus.VALIDATED
            wanted = BuildSpec.model_validate(row.build).level
            lacks = kernel.latency_ms is None or wanted > max(artifact.optimization_level, PUBLISHED_LEVEL)
            if kernel.status is KernelStatus.VALIDATED and lacks:
                session.add(finishing_job(row, kernel.id, self._clock))
            session.flush()
            return kernel_contract(kernel)

        return await self._database.apply(recorded)

    async def fail(
        self, job_id: str, worker: str, reason: str, *, retry: bool, killed: bool = False
    ) -> BlueprintStatus:
        """Give a job up, for another try or for good; the reason is stored.

        Returns:
            What became of the blueprint.

        Raises:
            Conflict: If the lease ran out and somebody else holds the job.
        """

        def failed(session: Session) -> BlueprintStatus:
            row = held(session, job_id, worker)
            row.reason = reason[:MAX_REASON]
            row.deaths += int(killed)
            session.flush()
            if row.phase is not JobPhase.BUILD:
                self._unfinished(session, row, retry=retry and row.deaths < MAX_DEATHS)
            elif killed and deaths(session, row.blueprint_id) >= MAX_DEATHS:
                self._quarantine(session, row)
            elif not retry:
                end(row, JobStatus.REJECTED, self._clock)
                demote(session, row, BlueprintStatus.REJECTED)
            else:
                self._return(session, row)
            return row.blueprint.status

        became = await self._database.apply(failed)
        self._line.moved()
        return became

    async def release(self, job_id: str, worker: str) -> None:
        """Return a job untried, because the worker stops.

        Raises:
            Conflict: If the lease ran out and somebody else holds the job.
        """

        def released(session: Session) -> None:
            row = held(session, job_id, worker)
            row.attempts -= 1
            self._return(session, row)

        await self._database.apply(released)
        self._line.moved()

    async def _may_claim(self, finishing: bool) -> bool:
        """Look before taking the write lock, so that idle workers do not hold writers up."""
        lapsed = (CompileJobRow.status == JobStatus.LEASED) & (CompileJobRow.lease_until < self._clock.now_s())
        async with self._database.reading() as session:
            return await session.scalar(_some(or_(_waiting(finishing), lapsed))) is not None

    def _take_back_lapsed(self, session: Session) -> None:
        now = self._clock.now_s()
        lapsed = select(CompileJobRow).where(CompileJobRow.status == JobStatus.LEASED, CompileJobRow.lease_until < now)
        lapsed = lapsed.options(joinedload(CompileJobRow.blueprint))
        for row in session.scalars(lapsed.with_for_update(skip_locked=True, of=CompileJobRow)):
            row.reason = f"worker {row.worker} vanished while it held the job"
            self._return(session, row)
        session.flush()

    def _return(self, session: Session, row: CompileJobRow) -> None:
        """Queue a job again, or give it up after the last try."""
        if row.attempts >= MAX_ATTEMPTS:
            row.reason = f"given up after {row.attempts} tries; the last one: {row.reason}"
            end(row, JobStatus.FAILED, self._clock)
            if row.phase is JobPhase.BUILD:
                demote(session, row, BlueprintStatus.UNVALIDATED)
        else:
            row.status, row.worker, row.lease_until = JobStatus.QUEUED, None, None

    def _unfinished(self, session: Session, row: CompileJobRow, *, retry: bool) -> None:
        """Try again, or leave a kernel as it is: it was proven without what its level adds."""
        if retry:
            self._return(session, row)
        else:
            end(row, JobStatus.FAILED, self._clock)

    def _quarantine(self, session: Session, row: CompileJobRow) -> None:
        """End every open build of a blueprint that kills."""
        row.blueprint.status = BlueprintStatus.QUARANTINED
        open_jobs = select(CompileJobRow).where(
            CompileJobRow.blueprint_id == row.blueprint_id, CompileJobRow.status.in_(_OPEN)
        )
        reason = f"quarantined, its blueprint killed {MAX_DEATHS} processes; the last time: {row.reason}"
        for job in session.scalars(open_jobs.with_for_update()):
            job.reason = reason
            end(job, JobStatus.QUARANTINED, self._clock)


def _some(condition: ColumnElement[bool]) -> Select[str]:
    return select(CompileJobRow.id).where(condition).limit(1)


def _waiting(finishing: bool) -> ColumnElement[bool]:
    queued = CompileJobRow.status == JobStatus.QUEUED
    wanted = (JobPhase.BUILD, JobPhase.FINISH) if finishing else (JobPhase.BUILD,)
    return queued & CompileJobRow.phase.in_(wanted)


def _next_job(finishing: bool) -> Select[CompileJobRow]:
    """Choose the most urgent job; on PostgreSQL other workers skip it instead of waiting for it."""
    queued = select(CompileJobRow).where(_waiting(finishing)).order_by(*in_turn()).limit(1)
    return queued.options(joinedload(CompileJobRow.blueprint)).with_for_update(skip_locked=True, of=CompileJobRow)


_NEXT = {finishing: _next_job(finishing) for finishing in (False, True)}


def _check_artifact(artifact: CompiledKernelArtifact, report: ValidationResult) -> None:
    digest = digest_of(artifact.kernel_binary)
    if not digest == artifact.artifact_id == report.kernel_id:
        raise _mixed_up(artifact, digest, report)


def _mixed_up(artifact: CompiledKernelArtifact, digest: str, report: ValidationResult) -> KernelRejected:
    return KernelRejected(
        f"artifact {artifact.artifact_id[:80]} was not stored",
        why=f"its bytes have the digest {digest}, its report is about {report.kernel_id[:80]}",
        todo="compile it again",
    )


def _check_blueprint(job_id: str, wanted: str, made_from: str) -> None:
    if made_from != wanted:
        raise KernelRejected(
            f"the artifact of job {job_id} was not stored",
            why=f"it was made from {made_from[:80]}, the job is about {wanted}",
        )
