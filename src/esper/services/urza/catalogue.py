"""Blueprints and kernels as trainers and controllers see them."""

from collections.abc import AsyncIterator, Iterable

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from esper.contracts.adaptation import Outcome
from esper.contracts.events import BlueprintSubmitted, CompilationEvent
from esper.contracts.ids import new_id
from esper.contracts.kernel import (
    BlueprintContract,
    BlueprintStatus,
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    CompiledKernelContract,
    JsonObject,
    KernelStatus,
    ValidationResult,
)
from esper.contracts.store import (
    BlueprintPage,
    BlueprintQuery,
    BlueprintRecord,
    KernelPage,
    KernelQuery,
    KernelRecord,
    LineageEntry,
    OutcomeStatistics,
)
from esper.contracts.topics import COMPILATIONS, SUBMITTED
from esper.errors import ConfigError, KernelRejected, NotFound
from esper.ir import BlueprintIR, check_birth
from esper.ports import BlobStore, Clock
from esper.services.urza.base import now
from esper.services.urza.database import Database, lock
from esper.services.urza.lineage import MAX_LINE, ancestors, descendants
from esper.services.urza.listing import blueprint_record, page_of_blueprints
from esper.services.urza.models import (
    Blueprint,
    BlueprintTag,
    BlueprintWord,
    CompileJobRow,
    JobStatus,
    Kernel,
    OutcomeRow,
    ValidationReport,
)
from esper.services.urza.outbox import Outbox
from esper.services.urza.queueing import position_of, wait_of
from esper.services.urza.records import build_key, kernel_contract
from esper.services.urza.search import kernel_record, page_of_kernels
from esper.services.urza.statistics import statistics
from esper.services.urza.words import words_of

_REFUSED = {
    JobStatus.REJECTED: "the forge refused it",
    JobStatus.QUARANTINED: "it is quarantined",
    JobStatus.FAILED: "the forge gave it up",
}


class Catalogue:
    """Implements `esper.ports.Library`.

    Args:
        database: Where rows are kept.
        blobs: Where bytes are kept.
        outbox: Announces new blueprints.
        clock: Stamps jobs.
    """

    def __init__(self, database: Database, blobs: BlobStore, outbox: Outbox, clock: Clock) -> None:
        self._database, self._blobs, self._outbox, self._clock = database, blobs, outbox, clock

    async def submit(self, request: BlueprintSubmissionRequest) -> BlueprintSubmissionResponse:
        """Check and store a blueprint, and queue its build where nobody did.

        Raises:
            InvalidBlueprint: If it breaks a rule of the representation, or is no graft that is neutral and alive.
        """
        ir = _arrived(request.architecture_ir)
        response = await self._database.transact(lambda session: self._submitted(session, ir, request))
        self._outbox.notify()
        return response

    async def store_blueprint(self, blueprint: BlueprintContract, parent_id: str | None = None) -> str:
        """Check and store a blueprint without queueing a build.

        Args:
            blueprint: The design; its id and version are given by the store.
            parent_id: The blueprint that it was made from; by default the one that it names itself.

        Returns:
            Its content address: equal designs are one blueprint.

        Raises:
            InvalidBlueprint: If it breaks a rule.
            NotFound: If there is no such parent.
        """
        ir = _arrived(blueprint.architecture_ir)

        async def stored(session: AsyncSession) -> str:
            row = await self._ensured(session, ir, name=blueprint.name, tags=blueprint.tags)
            row.details = {**row.details, **blueprint.metadata}
            await _adopt(session, row, parent_id or blueprint.parent_id)
            return row.id

        return await self._database.transact(stored)

    async def find(self, blueprint_id: str, build: BuildSpec) -> CompiledKernelContract | None:
        """Return the validated kernel of a blueprint, or None while there is none.

        Raises:
            KernelRejected: If the forge refused it; the reasons are in the error.
        """
        query = select(CompileJobRow).where(CompileJobRow.build_key == build_key(blueprint_id, build))
        async with self._database.reading() as session:
            job = await session.scalar(query.options(joinedload(CompileJobRow.kernel)))
        if job is None or job.status in (JobStatus.QUEUED, JobStatus.LEASED):
            return None
        if job.status in _REFUSED:
            raise KernelRejected(
                f"blueprint {blueprint_id[:19]} has no kernel", why=f"{_REFUSED[job.status]}: {job.reason}"
            )
        return None if job.kernel is None else kernel_contract(_graftable(job.kernel))

    async def read(self, kernel_id: str) -> bytes:
        """Return the bytes of a validated kernel, digest verified.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
            StoreUnavailable: If its bytes are damaged.
        """
        return await self._blobs.get((await self._readable(kernel_id)).kernel_binary_ref)

    async def stream(self, kernel_id: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Return the bytes of a validated kernel as they are read, or a range of them.

        Returns:
            Chunks; the last comes only if the digest of the whole is right.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
            ContractError: If there are no such bytes in it.
        """
        return self._blobs.stream((await self._readable(kernel_id)).kernel_binary_ref, start, stop)

    async def link(self, kernel_id: str, *, expires_s: float) -> str | None:
        """Return an address from which a validated kernel can be read for a while, or None where the store has no such.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
        """
        return await self._blobs.link((await self._readable(kernel_id)).kernel_binary_ref, expires_s)

    async def _readable(self, kernel_id: str) -> Kernel:
        async with self._database.reading() as session:
            kernel = await session.get(Kernel, kernel_id)
        if kernel is None:
            raise _no_kernel(kernel_id)
        return _graftable(kernel)

    async def readable_size(self, kernel_id: str) -> int:
        """Return how many bytes a validated kernel has.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
        """
        return (await self._readable(kernel_id)).size_bytes

    async def report(self, outcome: Outcome) -> None:
        """Record what a graft brought; a decision has one row, with what was reported last."""

        async def recorded(session: AsyncSession) -> None:
            await session.merge(_outcome_row(outcome))

        await self._database.transact(recorded)

    async def search_kernels_by_tags(
        self, tags: list[str], status: KernelStatus | None = None, min_performance: float | None = None
    ) -> list[Kernel]:
        """Return kernels whose blueprint has any of the tags, fastest first; those that were not measured come last.

        Args:
            tags: Any of these; an empty list means every kernel.
            status: Only kernels of this status.
            min_performance: Only kernels of at least this throughput, in examples per second.

        Returns:
            Rows with their blueprint and its tags loaded.
        """
        query = select(Kernel).options(joinedload(Kernel.blueprint).selectinload(Blueprint.tag_rows))
        if tags:
            tagged = select(BlueprintTag.blueprint_id).where(BlueprintTag.tag.in_(tags))
            query = query.where(Kernel.blueprint_id.in_(tagged))
        if status is not None:
            query = query.where(Kernel.status == status)
        if min_performance is not None:
            query = query.where(Kernel.throughput >= min_performance)
        async with self._database.reading() as session:
            return list(await session.scalars(query.order_by(Kernel.rank, Kernel.id)))

    async def search(self, query: KernelQuery) -> KernelPage:
        """Return a page of the kernels that fit, fastest first; those that were not measured come last.

        Raises:
            ContractError: If its cursor cannot be used.
        """
        async with self._database.reading() as session:
            return await page_of_kernels(session, query)

    async def search_blueprints(self, query: BlueprintQuery) -> BlueprintPage:
        """Return a page of the blueprints that fit, by name and version.

        Raises:
            ContractError: If its cursor cannot be used.
        """
        async with self._database.reading() as session:
            return await page_of_blueprints(session, query)

    async def get_kernel(self, kernel_id: str) -> KernelRecord:
        """Return a kernel's record, whatever its status.

        Raises:
            NotFound: If there is none.
        """
        async with self._database.reading() as session:
            found = await kernel_record(session, kernel_id)
        if found is None:
            raise _no_kernel(kernel_id)
        return found

    async def get_blueprint(self, blueprint_id: str) -> BlueprintRecord:
        """Return a blueprint.

        Raises:
            NotFound: If there is none.
        """
        async with self._database.reading() as session:
            found = await blueprint_record(session, blueprint_id)
        if found is None:
            raise _no_blueprint(blueprint_id)
        return found

    async def get_report(self, kernel_id: str) -> ValidationResult:
        """Return what the validator found about a kernel.

        Raises:
            NotFound: If there is no such kernel, or it was not validated yet.
        """
        async with self._database.reading() as session:
            found = await session.get(ValidationReport, kernel_id)
        if found is None:
            raise NotFound(f"there is no report about kernel {kernel_id[:80]}", todo="validate it first")
        return ValidationResult.model_validate(found.content)

    async def get_kernel_lineage(self, kernel_id: str) -> list[LineageEntry]:
        """Return the blueprints from which a kernel descends: its own first, the origin last.

        Returns:
            Nothing where there is no such kernel. A circle of parents is followed once.
        """
        async with self._database.reading() as session:
            blueprint_id = await session.scalar(select(Kernel.blueprint_id).where(Kernel.id == kernel_id))
            return [] if blueprint_id is None else await ancestors(session, blueprint_id)

    async def get_ancestors(self, blueprint_id: str) -> list[LineageEntry]:
        """Return the blueprints from which one descends: itself first, the origin last; nothing where there is none."""
        async with self._database.reading() as session:
            return await ancestors(session, blueprint_id)

    async def get_descendants(self, blueprint_id: str, *, limit: int = MAX_LINE) -> list[LineageEntry]:
        """Return what was made of a blueprint: itself first, the nearest next; nothing where there is none."""
        async with self._database.reading() as session:
            return await descendants(session, blueprint_id, limit)

    async def set_kernel_status(self, kernel_id: str, status: KernelStatus) -> KernelRecord:
        """Give a kernel another status; what is not VALIDATED is handed out no more.

        Raises:
            NotFound: If there is no such kernel.
            IllegalTransition: If that status may not follow the present one.
        """

        async def changed(session: AsyncSession) -> KernelRecord:
            row = await session.get(Kernel, kernel_id, with_for_update=True)
            if row is None:
                raise _no_kernel(kernel_id)
            row.status = status
            await session.flush()
            found = await kernel_record(session, kernel_id)
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
                raise _no_blueprint(blueprint_id)
            row.status = status
            await session.flush()
            found = await blueprint_record(session, blueprint_id)
            assert found is not None
            return found

        return await self._database.transact(changed)

    async def kernel_statistics(self, kernel_id: str) -> OutcomeStatistics:
        """Return what grafts of a kernel brought."""
        async with self._database.reading() as session:
            return await statistics(session, OutcomeRow.kernel_id == kernel_id)

    async def blueprint_statistics(self, blueprint_id: str) -> OutcomeStatistics:
        """Return what grafts of all kernels of a blueprint brought."""
        kernels = select(Kernel.id).where(Kernel.blueprint_id == blueprint_id)
        async with self._database.reading() as session:
            return await statistics(session, OutcomeRow.kernel_id.in_(kernels))

    async def _submitted(
        self, session: AsyncSession, ir: BlueprintIR, request: BlueprintSubmissionRequest
    ) -> BlueprintSubmissionResponse:
        blueprint = await self._ensured(
            session, ir, name=request.name, tags=request.tags, submitted_by=request.submitted_by
        )
        key = build_key(ir.digest, request.build)
        job = await session.scalar(select(CompileJobRow).where(CompileJobRow.build_key == key).with_for_update())
        if job is None:
            job = self._queued(session, blueprint, key, request)
        elif job.status is JobStatus.FAILED:
            job.status, job.attempts, job.queued_at, job.ended_at = JobStatus.QUEUED, 0, self._clock.now_s(), None
        if job.status is JobStatus.QUEUED:
            job.priority = max(job.priority, request.priority)
        await session.flush()
        response = await _response(session, job, self._clock.now_s())
        if job.status is JobStatus.QUEUED:
            self._announce(session, job.priority, response)
        return response

    def _announce(self, session: AsyncSession, priority: int, response: BlueprintSubmissionResponse) -> None:
        """Tell who waits how long it will take, and wake the forge."""
        waits = CompilationEvent(
            blueprint_id=response.blueprint_id,
            status="queued",
            queue_position=response.queue_position,
            eta_s=response.estimated_compilation_time_s,
        )
        self._outbox.add(session, COMPILATIONS.stream, waits)
        submitted = BlueprintSubmitted(blueprint_id=response.blueprint_id, priority=priority)
        self._outbox.add(session, SUBMITTED.stream, submitted)

    def _queued(
        self, session: AsyncSession, blueprint: Blueprint, key: str, request: BlueprintSubmissionRequest
    ) -> CompileJobRow:
        job = CompileJobRow(
            id=new_id("job"),
            blueprint_id=blueprint.id,
            build_key=key,
            build=request.build.model_dump(mode="json"),
            priority=request.priority,
            status=JobStatus.QUEUED,
            attempts=0,
            deaths=0,
            reason="",
            queued_at=self._clock.now_s(),
        )
        if blueprint.status is BlueprintStatus.QUARANTINED:
            job.status, job.reason = JobStatus.QUARANTINED, "another build of this blueprint killed its processes"
        session.add(job)
        return job

    async def _ensured(
        self, session: AsyncSession, ir: BlueprintIR, *, name: str, tags: Iterable[str], submitted_by: str = "system"
    ) -> Blueprint:
        """Return the row of a design, made with the next version of its name where it is new; tags are added."""
        row = await session.get(Blueprint, ir.digest, options=[selectinload(Blueprint.tag_rows)])
        if row is None:
            await lock(session, f"name {name}")
            newest = await session.scalar(select(func.max(Blueprint.version)).where(Blueprint.name == name))
            row = Blueprint(
                id=ir.digest,
                name=name,
                architecture_ir=ir.to_json(),
                version=(newest or 0) + 1,
                submitted_by=submitted_by,
                details={},
                tag_rows=[],
                word_rows=[BlueprintWord(word=word) for word in words_of(name)],
            )
            session.add(row)
        added = sorted(set(tags) - set(row.tags))
        if added:
            row.tag_rows.extend(BlueprintTag(tag=tag) for tag in added)
            row.updated_at = now()
        await session.flush()
        return row


def _arrived(architecture_ir: JsonObject) -> BlueprintIR:
    """Read a blueprint that somebody sent, and refuse one that could never be grafted."""
    ir = BlueprintIR.from_json(architecture_ir)
    check_birth(ir)
    return ir


async def _adopt(session: AsyncSession, row: Blueprint, parent_id: str | None) -> None:
    if parent_id is None:
        return
    if row.parent_id == parent_id:
        return
    await lock(session, "lineage")
    line = {entry.blueprint_id for entry in await ancestors(session, parent_id)}
    if not line:
        raise NotFound(f"there is no blueprint {parent_id[:80]}", todo="store the parent first")
    if row.id in line:
        raise ConfigError(
            "a blueprint cannot be its own parent",
            why="an equal design is the same blueprint"
            if parent_id == row.id
            else f"{parent_id[:19]} descends from it already",
        )
    row.parent_id = parent_id


def _no_kernel(kernel_id: str) -> NotFound:
    return NotFound(f"there is no kernel {kernel_id[:80]}", todo="submit its blueprint")


def _no_blueprint(blueprint_id: str) -> NotFound:
    return NotFound(f"there is no blueprint {blueprint_id[:80]}", todo="submit it")


async def _response(session: AsyncSession, job: CompileJobRow, now_s: float) -> BlueprintSubmissionResponse:
    if job.status is not JobStatus.QUEUED:
        message = f"the build is {job.status}" + (f": {job.reason}" if job.reason else "")
        return BlueprintSubmissionResponse(blueprint_id=job.blueprint_id, status=job.status, message=message)
    return BlueprintSubmissionResponse(
        blueprint_id=job.blueprint_id,
        status=job.status,
        message="the blueprint waits for the forge",
        queue_position=await position_of(session, job),
        estimated_compilation_time_s=await wait_of(session, job, now_s),
    )


def _graftable(kernel: Kernel) -> Kernel:
    if kernel.status is not KernelStatus.VALIDATED:
        raise KernelRejected(f"kernel {kernel.id[:19]} may not be grafted", why=f"it is {kernel.status}")
    return kernel


def _outcome_row(outcome: Outcome) -> OutcomeRow:
    return OutcomeRow(
        decision_id=outcome.decision_id,
        run_id=outcome.run_id,
        kernel_id=outcome.kernel_id,
        verdict=str(outcome.verdict),
        gain=outcome.gain,
        gain_error=outcome.gain_error,
        content=outcome.model_dump(mode="json"),
    )
