"""A job in the hands of a worker, and what its end means for its blueprint."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from esper.contracts.kernel import BlueprintStatus, JobPhase, KernelStatus
from esper.errors import Conflict, NotFound
from esper.ports import Clock
from esper.services.urza.models import CompileJobRow, JobStatus, Kernel


async def held(session: AsyncSession, job_id: str, worker: str) -> CompileJobRow:
    """Return a job that this worker holds; a lease that ran out counts as long as nobody else took the job."""
    found = select(CompileJobRow).where(CompileJobRow.id == job_id).options(joinedload(CompileJobRow.blueprint))
    row = await session.scalar(found.with_for_update(of=CompileJobRow))
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    if row.status is not JobStatus.LEASED or row.worker != worker:
        why = f"{row.worker} holds it" if row.status is JobStatus.LEASED else f"it is {row.status}"
        raise Conflict(
            f"worker {worker} does not hold job {job_id}", why=why, todo="drop the work and claim another job"
        )
    return row


async def deaths(session: AsyncSession, blueprint_id: str) -> int:
    """Return how many processes the builds of a blueprint killed; what finishes a proven kernel does not count."""
    total = select(func.sum(CompileJobRow.deaths)).where(
        CompileJobRow.blueprint_id == blueprint_id, CompileJobRow.phase == JobPhase.BUILD
    )
    return int(await session.scalar(total) or 0)


async def demote(session: AsyncSession, row: CompileJobRow, status: BlueprintStatus) -> None:
    """Say that a build came to nothing, where no other build of the blueprint gave a kernel."""
    validated = select(Kernel.id).where(
        Kernel.blueprint_id == row.blueprint_id, Kernel.status == KernelStatus.VALIDATED
    )
    if row.blueprint.status is not BlueprintStatus.QUARANTINED and await session.scalar(validated.limit(1)) is None:
        row.blueprint.status = status


def end(row: CompileJobRow, status: JobStatus, clock: Clock) -> None:
    """Say that nobody works on a job any more."""
    row.status, row.lease_until, row.ended_at = status, None, clock.now_s()
