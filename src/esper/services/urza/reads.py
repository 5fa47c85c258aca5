"""Blueprints and kernels as whoever reads sees them."""

from collections.abc import AsyncIterator

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from esper.contracts.kernel import BuildSpec, CompiledKernelContract, KernelStatus, ValidationResult
from esper.contracts.store import (
    MAX_DESCENDANTS,
    MAX_PAGE,
    BlueprintPage,
    BlueprintQuery,
    BlueprintRecord,
    KernelPage,
    KernelQuery,
    KernelRecord,
    LineageEntry,
    OutcomeStatistics,
)
from esper.contracts.store_calls import MAX_LINK_S, check_part
from esper.errors import ContractError, KernelRejected, NotFound
from esper.ports import BlobStore
from esper.services.urza.database import Database
from esper.services.urza.lineage import ancestors, descendants
from esper.services.urza.listing import blueprint_record, page_of_blueprints
from esper.services.urza.models import (
    Blueprint,
    BlueprintTerm,
    CompileJobRow,
    JobStatus,
    Kernel,
    OutcomeRow,
    ValidationReport,
)
from esper.services.urza.pages import Shown
from esper.services.urza.reader import Rows
from esper.services.urza.records import build_key, kernel_contract
from esper.services.urza.search import kernel_record, page_of_kernels, page_of_rows
from esper.services.urza.statistics import statistics
from esper.services.urza.terms import tag_term

_REFUSED = {
    JobStatus.REJECTED: "the forge refused it",
    JobStatus.QUARANTINED: "it is quarantined",
    JobStatus.FAILED: "the forge gave it up",
}


class Reads:
    """The reading half of `esper.ports.Library`, with searches and lineage.

    Args:
        database: Where rows are kept.
        blobs: Where bytes are kept.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database, self._blobs = database, blobs

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
        """Return the bytes of a validated kernel as they are read, or a range of one byte or more.

        Args:
            kernel_id: The kernel.
            start: The first byte.
            stop: The one after the last; the end of the kernel where none is said.

        Returns:
            Chunks; the last comes only if the digest of the whole is right.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
            ContractError: If there are no such bytes in it.
        """
        kernel = await self._readable(kernel_id)
        check_part(start, stop, kernel.size_bytes)
        return self._blobs.stream(kernel.kernel_binary_ref, start, stop)

    async def link(self, kernel_id: str, *, expires_s: float) -> str | None:
        """Return an address from which a validated kernel can be read for a while, or None where the store has no such.

        Raises:
            ContractError: If ``expires_s`` is not above 0, or longer than an hour.
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
        """
        if not 0 < expires_s <= MAX_LINK_S:
            raise ContractError(f"no address is good for {expires_s} s", todo=f"ask for {MAX_LINK_S:g} s at most")
        return await self._blobs.link((await self._readable(kernel_id)).kernel_binary_ref, expires_s)

    async def _readable(self, kernel_id: str) -> Kernel:
        async with self._database.reading() as session:
            kernel = await session.get(Kernel, kernel_id)
        if kernel is None:
            raise no_kernel(kernel_id)
        return _graftable(kernel)

    async def readable_size(self, kernel_id: str) -> int:
        """Return how many bytes a validated kernel has.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
        """
        return (await self._readable(kernel_id)).size_bytes

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
        query = select(Kernel).options(joinedload(Kernel.blueprint).selectinload(Blueprint.term_rows))
        if tags:
            tagged = select(BlueprintTerm.blueprint_id).where(BlueprintTerm.term.in_(list(map(tag_term, tags))))
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
        return await page_of_kernels(self._database, query)

    async def search_rows(self, query: KernelQuery) -> tuple[Rows, str | None]:
        """Return what a summary of each kernel needs of the same page, and where the next one begins.

        Returns:
            Rows of id, blueprint, tags as a JSON text, throughput or None, device; and more, which is not for callers.

        Raises:
            ContractError: If its cursor cannot be used.
        """
        return await page_of_rows(self._database, query, Shown.SUMMARY)

    async def search_blueprints(self, query: BlueprintQuery) -> BlueprintPage:
        """Return a page of the blueprints that fit, by name and version.

        Raises:
            ContractError: If its cursor cannot be used.
        """
        return await page_of_blueprints(self._database, query)

    async def get_kernel(self, kernel_id: str) -> KernelRecord:
        """Return a kernel's record, whatever its status.

        Raises:
            NotFound: If there is none.
        """
        found = await kernel_record(self._database, kernel_id)
        if found is None:
            raise no_kernel(kernel_id)
        return found

    async def get_blueprint(self, blueprint_id: str) -> BlueprintRecord:
        """Return a blueprint.

        Raises:
            NotFound: If there is none.
        """
        found = await blueprint_record(self._database, blueprint_id)
        if found is None:
            raise no_blueprint(blueprint_id)
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

    async def get_descendants(self, blueprint_id: str, *, limit: int = MAX_PAGE) -> list[LineageEntry]:
        """Return what was made of a blueprint: itself first, the nearest next; nothing where there is none.

        Raises:
            ContractError: If ``limit`` is not from 1 to 1000.
        """
        if not 1 <= limit <= MAX_DESCENDANTS:
            raise ContractError(f"no answer has {limit} descendants", todo=f"ask for 1 to {MAX_DESCENDANTS}")
        async with self._database.reading() as session:
            return await descendants(session, blueprint_id, limit)

    async def kernel_statistics(self, kernel_id: str) -> OutcomeStatistics:
        """Return what grafts of a kernel brought."""
        async with self._database.reading() as session:
            return await statistics(session, OutcomeRow.kernel_id == kernel_id)

    async def blueprint_statistics(self, blueprint_id: str) -> OutcomeStatistics:
        """Return what grafts of all kernels of a blueprint brought."""
        kernels = select(Kernel.id).where(Kernel.blueprint_id == blueprint_id)
        async with self._database.reading() as session:
            return await statistics(session, OutcomeRow.kernel_id.in_(kernels))


def no_kernel(kernel_id: str) -> NotFound:
    """Return the error for a kernel that is not there."""
    return NotFound(f"there is no kernel {kernel_id[:80]}", todo="submit its blueprint")


def no_blueprint(blueprint_id: str) -> NotFound:
    """Return the error for a blueprint that is not there."""
    return NotFound(f"there is no blueprint {blueprint_id[:80]}", todo="submit it")


def _graftable(kernel: Kernel) -> Kernel:
    if kernel.status is not KernelStatus.VALIDATED:
        raise KernelRejected(f"kernel {kernel.id[:19]} may not be grafted", why=f"it is {kernel.status}")
    return kernel
