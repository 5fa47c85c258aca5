"""Blueprints and kernels as trainers and controllers write them."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Table, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from esper.contracts.adaptation import Outcome
from esper.contracts.events import BlueprintSubmitted, CompilationEvent
from esper.contracts.ids import new_id
from esper.contracts.kernel import (
    MOST_TAGS,
    BlueprintContract,
    BlueprintStatus,
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    JobPhase,
    JsonObject,
    KernelStatus,
)
from esper.contracts.store import (
    BlueprintRecord,
    KernelRecord,
)
from esper.contracts.store_calls import stated
from esper.contracts.topics import COMPILATIONS, SUBMITTED
from esper.errors import ConfigError, ContractError, NotFound
from esper.ir import BlueprintIR, check_birth
from esper.ports import BlobStore, Clock
from esper.services.urza.base import NAME
from esper.services.urza.database import Database, lock
from esper.services.urza.door import Door
from esper.services.urza.line import Line
from esper.services.urza.lineage import descends
from esper.services.urza.listing import blueprint_record
from esper.services.urza.models import (
    Blueprint,
    BlueprintTerm,
    CompileJobRow,
    JobStatus,
    Kernel,
    OutcomeRow,
)
from esper.services.urza.outbox import Outbox
from esper.services.urza.queueing import Pace
from esper.services.urza.reader import SessionReader
from esper.services.urza.reads import Reads, no_blueprint, no_kernel
from esper.services.urza.records import build_key
from esper.services.urza.search import kernel_record
from esper.services.urza.terms import bits_of, tag_term, words_of

_AT_ONCE = 4
"""Submissions that are checked and written side by side; one where the database has one writer. The others wait at the door: in
the line of those who write, where the forge stands for each job, a crowd of strangers would hold every build up."""

_LONGEST = NAME.length or 0

_JOB = select(CompileJobRow).where(CompileJobRow.build_key == bindparam("key")).with_for_update()
_NEWEST = select(func.max(Blueprint.version)).where(Blueprint.name == bindparam("name"))
_STATUS = select(Blueprint.status).where(Blueprint.id == bindparam("id"))
_TERMS = select(BlueprintTerm.term).where(BlueprintTerm.blueprint_id == bindparam("id"))
# Rows that are only written need no object and no plan of what to write first, which took most of a submission's time.
_BLUEPRINTS: Table = Blueprint.__table__  # type: ignore[assignment]
_NEW_BLUEPRINT = insert(_BLUEPRINTS)
_CHANGED = update(_BLUEPRINTS).where(_BLUEPRINTS.c.id == bindparam("changed"))
_NEW_TERMS = insert(BlueprintTerm.__table__)  # type: ignore[arg-type]
_NEW_JOB = insert(CompileJobRow.__table__)  # type: ignore[arg-type]


class Catalogue(Reads):
    """Implements `esper.ports.Library`: what may be read, and here what may be written.

    Args:
        database: Where rows are kept.
        blobs: Where bytes are kept.
        outbox: Announces new blueprints.
        clock: Stamps jobs.
        line: Is told who joins it.

    Attributes:
        door: Submissions wait at it before their transaction begins, so that who waits holds nothing that others need.
    """

    def __init__(self, database: Database, blobs: BlobStore, outbox: Outbox, clock: Clock, line: Line) -> None:
        super().__init__(database, blobs)
        self._outbox, self._clock, self._line, self._pace = outbox, clock, line, Pace(clock)
        self.door = Door(1 if database.has_one_writer else _AT_ONCE, clock)

    async def submit(self, request: BlueprintSubmissionRequest) -> BlueprintSubmissionResponse:
        """Check and store a blueprint, and queue its build where nobody did.

        Raises:
            InvalidBlueprint: If it breaks a rule of the representation, or is no graft that is neutral and alive.
        """
        # Who submits within a transaction that is open has passed the door before it began.
        async with nullcontext() if self._database.is_joined else self.door.passed(request.priority):
            ir = _arrived(request.architecture_ir)
            response = await self._database.apply(lambda session: self._submitted(session, ir, request))
        self._line.moved()
        return response

    async def store_blueprint(self, blueprint: BlueprintContract, parent_id: str | None = None) -> str:
        """Check and store a blueprint without queueing a build.

        Args:
            blueprint: The design; its id and version are given by the store.
            parent_id: The blueprint that it was made from; by default the one that it names itself.

        Returns:
            Its content address: equal designs are one blueprint.

        Raises:
            ContractError: If its name or a tag is too long, or there are too many tags.
            InvalidBlueprint: If it breaks a rule.
            NotFound: If there is no such parent.
        """
        ir = _arrived(blueprint.architecture_ir)

        async def stored(session: AsyncSession) -> str:
            await session.run_sync(_ensured, ir, name=blueprint.name, tags=blueprint.tags)
            row = await session.get_one(Blueprint, ir.digest, with_for_update=True)
            row.details = {**row.details, **_json(blueprint.metadata)}
            await _adopt(session, row, parent_id or blueprint.parent_id)
            return row.id

        return await self._database.transact(stored)

    async def report(self, outcome: Outcome) -> None:
        """Record what a graft brought; a decision has one row, with what was reported last."""
        await self._database.apply(lambda session: session.merge(_outcome_row(outcome)))

    async def set_kernel_status(self, kernel_id: str, status: KernelStatus) -> KernelRecord:
        """Give a kernel another status; what is not VALIDATED is handed out no more.

        Raises:
            NotFound: If there is no such kernel.
            IllegalTransition: If that status may not follow the present one.
        """

        async def changed(session: AsyncSession) -> KernelRecord:
            row = await session.get(Kernel, kernel_id, with_for_update=True)
            if row is None:
                raise no_kernel(kernel_id)
            row.status = status
            await session.flush()
            found = await kernel_record(SessionReader(session), kernel_id)
            assert found is not None
            return found

        return await self._database.transact(changed)

    async def set_blueprint_status(self, blueprint_id: str, status: BlueprintStatus) -> BlueprintRecord:
        """Give a blueprint another status.

        Raises:
            NotFound: If there is no such blueprint.
            IllegalTransition: If that status may not follow the present one.
        """

        async def changed(session: AsyncSession) -> BlueprintRecord:
            row = await session.get(Blueprint, blueprint_id, with_for_update=True)
            if row is None:
                raise no_blueprint(blueprint_id)
            row.status = status
            await session.flush()
            found = await blueprint_record(SessionReader(session), blueprint_id)
            assert found is not None
            return found

        return await self._database.transact(changed)

    def _submitted(
        self, session: Session, ir: BlueprintIR, request: BlueprintSubmissionRequest
    ) -> BlueprintSubmissionResponse:
        key = build_key(ir.digest, request.build)
        job = session.scalar(_JOB, {"key": key})
        status = _ensured(session, ir, name=request.name, tags=request.tags, submitted_by=request.submitted_by)
        if job is None:
            job = self._queued(session, ir.digest, status, key, request)
        elif job.status is JobStatus.FAILED:
            job.status, job.attempts, job.queued_at, job.ended_at = JobStatus.QUEUED, 0, self._clock.now_s(), None
        if job.status is JobStatus.QUEUED:
            job.priority = max(job.priority, request.priority)
        session.flush()
        response = self._response(session, job)
        if job.status is JobStatus.QUEUED:
            self._announce(session, job.priority, response)
        return response

    def _response(self, session: Session, job: CompileJobRow) -> BlueprintSubmissionResponse:
        if job.status is not JobStatus.QUEUED:
            message = f"the build is {job.status}" + (f": {job.reason}" if job.reason else "")
            return BlueprintSubmissionResponse(blueprint_id=job.blueprint_id, status=job.status, message=message)
        turn = self._pace.turn_of(session, job)
        self._line.joined(job.id, turn)
        return BlueprintSubmissionResponse(
            blueprint_id=job.blueprint_id,
            status=job.status,
            message="the blueprint waits for the forge",
            queue_position=turn.position,
            estimated_compilation_time_s=turn.wait_s,
        )

    def _announce(self, session: Session, priority: int, response: BlueprintSubmissionResponse) -> None:
        """Tell who waits how long it will take, and wake the forge."""
        waits = CompilationEvent(
            blueprint_id=response.blueprint_id,
            status="queued",
            queue_position=response.queue_position,
            eta_s=response.estimated_compilation_time_s,
        )
        submitted = BlueprintSubmitted(blueprint_id=response.blueprint_id, priority=priority)
        self._outbox.write(session, (COMPILATIONS.stream, waits), (SUBMITTED.stream, submitted))

    def _queued(
        self,
        session: Session,
        blueprint_id: str,
        status: BlueprintStatus,
        key: str,
        request: BlueprintSubmissionRequest,
    ) -> CompileJobRow:
        """Write the job of a build that nobody asked for yet; return it, apart from the session."""
        given: dict[str, Any] = {
            "id": new_id("job"), "blueprint_id": blueprint_id, "build_key": key,
            "build": request.build.model_dump(mode="json"), "priority": request.priority, "status": JobStatus.QUEUED,
            "queued_at": self._clock.now_s(), "phase": JobPhase.BUILD, "reason": "",
        }  # fmt: skip
        if status is BlueprintStatus.QUARANTINED:
            given["status"] = JobStatus.QUARANTINED
            given["reason"] = "another build of this blueprint killed its processes"
        session.execute(_NEW_JOB, given)
        return CompileJobRow(**given)


def _ensured(
    session: Session, ir: BlueprintIR, *, name: str, tags: Iterable[str], submitted_by: str = "system"
) -> BlueprintStatus:
    """Write the row of a design, with the next version of its name where it is new, and add tags; return its status."""
    tags = list(tags)
    if len(tags) > MOST_TAGS or any(len(text) > _LONGEST for text in (name, submitted_by, *tags)):
        raise ContractError(
            "the blueprint was not stored",
            why=f"it comes with more than {MOST_TAGS} tags, or with a tag or name of more than {_LONGEST} letters",
        )
    status = session.execute(_STATUS, {"id": ir.digest}).scalar()
    terms = {tag_term(tag) for tag in tags}
    if status is None:
        status = BlueprintStatus.UNVALIDATED
        lock(session, f"name {name}")
        newest = session.execute(_NEWEST, {"name": name}).scalar() or 0
        given = {"id": ir.digest, "name": name, "architecture_ir": ir.to_json(), "version": newest + 1}
        session.execute(_NEW_BLUEPRINT, given | {"status": status, "submitted_by": submitted_by})
        terms |= set(words_of(name))
    else:
        terms -= set(session.execute(_TERMS, {"id": ir.digest}).scalars())
        if terms:
            session.execute(_CHANGED, {"changed": ir.digest})
    if terms:
        rows = [{"blueprint_id": ir.digest, "term": term, "bits": bits_of(term)} for term in sorted(terms)]
        session.execute(_NEW_TERMS, rows)
    return status


def _arrived(architecture_ir: JsonObject) -> BlueprintIR:
    """Read a blueprint that somebody sent, and refuse one that could never be grafted."""
    ir = BlueprintIR.from_json(architecture_ir)
    check_birth(ir)
    return ir


def _json(given: JsonObject) -> JsonObject:
    """Return an object as it is once it went over a wire: what JSON has no number for becomes null."""
    with stated():
        found: JsonObject = from_json(to_json(given, inf_nan_mode="null"))
    return found


async def _adopt(session: AsyncSession, row: Blueprint, parent_id: str | None) -> None:
    if parent_id is None:
        return
    if row.parent_id == parent_id:
        return
    await session.run_sync(lock, "lineage")
    if await session.get(Blueprint, parent_id) is None:
        raise NotFound(f"there is no blueprint {parent_id[:80]}", todo="store the parent first")
    if await descends(session, parent_id, row.id):
        raise ConfigError(
            "a blueprint cannot be its own parent",
            why="an equal design is the same blueprint"
            if parent_id == row.id
            else f"{parent_id[:19]} descends from it already",
        )
    row.parent_id = parent_id


def _outcome_row(outcome: Outcome) -> OutcomeRow:
    """Return the row of an outcome; a gain that is no number, as of a loss that blew up, counts as not measured."""
    outcome = Outcome.model_validate_json(outcome.model_dump_json())
    return OutcomeRow(
        decision_id=outcome.decision_id,
        run_id=outcome.run_id,
        kernel_id=outcome.kernel_id,
        verdict=str(outcome.verdict),
        gain=outcome.gain,
        gain_error=outcome.gain_error,
        content=outcome.model_dump(mode="json"),
    )
