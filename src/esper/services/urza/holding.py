"""A job in the hands of a worker, and what its end means for its blueprint."""

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session, joinedload

from esper.contracts.kernel import BlueprintStatus, JobPhase, KernelStatus
from esper.errors import Conflict, NotFound
from esper.ports import Clock
from esper.services.urza.models import Blueprint, CompileJobRow, JobStatus, Kernel

_SEEN = select(CompileJobRow.status, CompileJobRow.worker, CompileJobRow.blueprint_id).where(
    CompileJobRow.id == bindparam("job_id")
)
_HELD = (
    select(CompileJobRow)
    .where(CompileJobRow.id == bindparam("job_id"))
    .options(joinedload(CompileJobRow.blueprint).load_only(Blueprint.status))
    .with_for_update(of=CompileJobRow)
)


def held(session: Session, job_id: str, worker: str) -> CompileJobRow:
    """Return a job that this worker holds; a lease that ran out counts as long as nobody else took the job."""
    row = session.scalar(_HELD, {"job_id": job_id})
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    _check(job_id, row.status, row.worker, worker)
    return row


def blueprint_held(session: Session, job_id: str, worker: str) -> str:
    """Return the blueprint of a job that this worker holds; nothing is locked."""
    found = session.execute(_SEEN, {"job_id": job_id}).one_or_none()
    if found is None:
        raise NotFound(f"there is no job {job_id}")
    status, holder, blueprint_id = found
    _check(job_id, status, holder, worker)
    return blueprint_id


def _check(job_id: str, status: JobStatus, holder: str | None, worker: str) -> None:
    if status is not JobStatus.LEASED or holder != worker:
        why = f"{holder} holds it" if status is JobStatus.LEASED else f"it is {status}"
        raise Conflict(
            f"worker {worker} does not hold job {job_id}", why=why, todo="drop the work and claim another job"
        )


def deaths(session: Session, blueprint_id: str) -> int:
    """Return how many processes the builds of a blueprint killed; what finishes a proven kernel does not count."""
    total = select(func.sum(CompileJobRow.deaths)).where(
        CompileJobRow.blueprint_id == blueprint_id, CompileJobRow.phase == JobPhase.BUILD
    )
    return int(session.scalar(total) or 0)


def demote(session: Session, row: CompileJobRow, status: BlueprintStatus) -> None:
    """Say that a build came to nothing, where no other build of the blueprint gave a kernel."""
    validated = select(Kernel.id).where(
        Kernel.blueprint_id == row.blueprint_id, Kernel.status == KernelStatus.VALIDATED
    )
    if row.blueprint.status is not BlueprintStatus.QUARANTINED and session.scalar(validated.limit(1)) is None:
        row.blueprint.status = status


def end(row: CompileJobRow, status: JobStatus, clock: Clock) -> None:
    """Say that nobody works on a job any more."""
    row.status, row.lease_until, row.ended_at = status, None, clock.now_s()
