"""Builds that are not wanted any more."""

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from esper.contracts.events import CompilationEvent
from esper.contracts.kernel import BlueprintStatus, BuildSpec
from esper.contracts.topics import COMPILATIONS
from esper.errors import Conflict, NotFound
from esper.ports import Clock
from esper.services.urza.database import Database
from esper.services.urza.holding import demote, end
from esper.services.urza.line import Line
from esper.services.urza.models import CompileJobRow, JobStatus
from esper.services.urza.outbox import Outbox
from esper.services.urza.records import build_key

_OPEN = (JobStatus.QUEUED, JobStatus.LEASED)


class Withdrawals:
    """Takes builds out of the queue.

    Args:
        database: Where the queue is.
        outbox: Announces them.
        clock: Stamps jobs.
        line: Is told when it moves.
    """

    def __init__(self, database: Database, outbox: Outbox, clock: Clock, line: Line) -> None:
        self._database, self._outbox, self._clock, self._line = database, outbox, clock, line

    async def withdraw(self, blueprint_id: str, build: BuildSpec) -> None:
        """End a build that waits or is at work.

        Who works on it finds out when they renew their lease, and stops. Submitting it again starts over.

        Raises:
            NotFound: If there is no such build.
            Conflict: If it has ended already.
        """

        def withdrawn(session: Session) -> None:
            query = select(CompileJobRow).where(CompileJobRow.build_key == build_key(blueprint_id, build))
            query = query.options(joinedload(CompileJobRow.blueprint)).with_for_update(of=CompileJobRow)
            job = session.scalar(query)
            if job is None:
                raise NotFound(f"there is no build of blueprint {blueprint_id[:80]}", todo="submit it")
            if job.status not in _OPEN:
                raise Conflict(
                    f"the build of blueprint {blueprint_id[:19]} cannot be withdrawn", why=f"it is {job.status}"
                )
            if job.status is JobStatus.QUEUED:  # only what is held can end, so it is taken first
                job.status = JobStatus.LEASED
                session.flush()
            job.reason = "it was withdrawn"
            end(job, JobStatus.FAILED, self._clock)
            demote(session, job, BlueprintStatus.UNVALIDATED)
            event = CompilationEvent(blueprint_id=blueprint_id, status="withdrawn", reason=job.reason)
            self._outbox.add(session, COMPILATIONS.stream, event)

        await self._database.apply(withdrawn)
        self._line.moved()
