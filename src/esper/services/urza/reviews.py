"""Kernels that are used much and were not looked at on some hardware: what a forge turns to when it has nothing to do."""

from sqlalchemy import Select, exists, func, select
from sqlalchemy.orm import Session, joinedload

from esper.contracts.ids import new_id
from esper.contracts.kernel import CompileJob, JobPhase, KernelStatus
from esper.contracts.store_calls import Review, stated
from esper.ir import digest_of
from esper.ports import Clock
from esper.services.urza.database import Database
from esper.services.urza.forms import FINISHING_PRIORITY
from esper.services.urza.models import BenchmarkResult, CompileJobRow, JobStatus, Kernel, OutcomeRow
from esper.services.urza.records import job_of

MOST_USED = 50
"""So many kernels are kept up with a forge's toolchain; who used others asks for them to be built."""


class Reviews:
    """Hands out kernels to be proven again.

    Args:
        database: Where kernels, jobs and outcomes are.
        clock: Measures leases.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def review(self, worker: str, hardware: str, *, lease_s: float) -> CompileJob | None:
        """Take the most used kernel that was not measured on some hardware, or None where there is none.

        Args:
            worker: Who takes it.
            hardware: As its measurements would name it.
            lease_s: For how long it is theirs without a sign of life.

        Returns:
            A job that proves the kernel again and finishes it; one that was given back is taken first. Each kernel is
            looked at once on one hardware, however that ends.

        Raises:
            ContractError: If nobody takes a job by that name, on that hardware, or for that long.
        """
        with stated():
            Review(worker=worker, hardware=hardware, lease_s=lease_s)

        def taken(session: Session) -> CompileJob | None:
            row = session.scalar(_given_back()) or self._fresh(session, hardware)
            if row is None:
                return None
            now = self._clock.now_s()
            row.status, row.worker, row.attempts = JobStatus.LEASED, worker, row.attempts + 1
            row.claimed_at, row.lease_until = now, now + lease_s
            return job_of(row)

        return await self._database.apply(taken)

    def _fresh(self, session: Session, hardware: str) -> CompileJobRow | None:
        for kernel_id in session.scalars(_most_used(hardware)).all():
            built = session.scalar(_build_of(kernel_id))
            if built is None:  # it was taken in from elsewhere, and how it is built is not known
                continue
            key = digest_of(f"review {kernel_id} on {hardware}".encode())
            if session.scalar(select(CompileJobRow.id).where(CompileJobRow.build_key == key)) is not None:
                continue
            row = CompileJobRow(
                id=new_id("job"), blueprint_id=built.blueprint_id, build_key=key, build=built.build,
                priority=FINISHING_PRIORITY, status=JobStatus.QUEUED, attempts=0, deaths=0, reason="",
                queued_at=self._clock.now_s(), phase=JobPhase.REVIEW, kernel_id=kernel_id, blueprint=built.blueprint,
            )  # fmt: skip
            session.add(row)
            session.flush()
            return row
        return None


def _given_back() -> Select[CompileJobRow]:
    row = CompileJobRow
    found = select(row).where(row.status == JobStatus.QUEUED, row.phase == JobPhase.REVIEW).order_by(row.queued_at)
    return found.limit(1).options(joinedload(row.blueprint)).with_for_update(skip_locked=True, of=row)


def _most_used(hardware: str) -> Select[str]:
    known = exists().where(BenchmarkResult.kernel_id == Kernel.id, BenchmarkResult.device == hardware)
    return (
        select(Kernel.id)
        .join(OutcomeRow, OutcomeRow.kernel_id == Kernel.id)
        .where(Kernel.status == KernelStatus.VALIDATED, ~known)
        .group_by(Kernel.id)
        .order_by(func.count().desc(), Kernel.id)
        .limit(MOST_USED)
    )


def _build_of(kernel_id: str) -> Select[CompileJobRow]:
    """Return the build with the highest level that gave a kernel."""
    row = CompileJobRow
    found = select(row).where(row.kernel_id == kernel_id, row.phase == JobPhase.BUILD, row.status == JobStatus.DONE)
    return found.order_by(row.build["level"].as_string().desc()).limit(1).options(joinedload(row.blueprint))
