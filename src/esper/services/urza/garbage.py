"""What the store lets go: kernels that nobody may use any more, and bytes that nothing refers to.

Mark and sweep, with grace. Whoever writes says first that they need the bytes (`esper.services.urza.keeper`), which moves the
time from which the grace counts. The sweep takes each row of garbage under a lock, looks again, and removes bytes and row
before it lets go: a writer of the same bytes either was first, and then they stay, or waits, and then finds them gone and
stores them again. A crash in between leaves a row without bytes that nothing refers to, which the next sweep removes.

Whatever has a foreign key to the row of some bytes refers to them; a table that comes later needs nothing said here.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Column, ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.kernel import JobPhase, KernelStatus
from esper.ports import BlobEntry, BlobStore, Clock
from esper.services.urza.access import IdempotencyRow
from esper.services.urza.base import Base
from esper.services.urza.database import Database
from esper.services.urza.models import Blob, CompileJobRow, JobStatus, Kernel

_DAY_S = 86_400.0
_BATCH = 500


class RetentionConfig(BaseModel):
    """How long things are kept that are of no use any more.

    Attributes:
        grace_s: Bytes that nothing refers to stay so long after somebody last said that they need them; longer than any
            upload takes.
        rejected_s: Kernels that were refused; why stays written in their builds.
        retired_s: Kernels that were withdrawn; their blueprints can be built again then.
        answers_s: Answers to requests with an idempotency key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    grace_s: float = Field(default=_DAY_S, ge=0)
    rejected_s: float = Field(default=30 * _DAY_S, ge=0)
    retired_s: float = Field(default=90 * _DAY_S, ge=0)
    answers_s: float = Field(default=_DAY_S, ge=0)


@dataclass(frozen=True)
class Collected:
    """What one collection removed.

    Attributes:
        kernels: Kernels that were refused or withdrawn long ago.
        blobs: Stored bytes that nothing refers to.
        size_bytes: How many bytes they were.
        answers: Answers to requests with an idempotency key.
    """

    kernels: int
    blobs: int
    size_bytes: int
    answers: int


class GarbageCollector:
    """Removes what retention allows.

    Args:
        database: Where the rows are.
        blobs: Where the bytes are.
        clock: Tells how old things are.
        config: How old they must be.
    """

    def __init__(
        self, database: Database, blobs: BlobStore, clock: Clock, config: RetentionConfig | None = None
    ) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock
        self._config = config or RetentionConfig()

    async def collect(self) -> Collected:
        """Remove what is old enough; it may run in several processes at once, and be ended at any moment.

        Raises:
            StoreUnavailable: If the database or the blobs do not answer.
        """
        kernels = await self._forget_kernels()
        answers = await self._forget_answers()
        async for strays in self._strays():
            await self._adopt(strays)
        blobs = size = 0
        last = ""
        while candidates := await self._candidates(last):
            last = candidates[-1]
            for digest in candidates:
                removed = await self._sweep(digest)
                blobs, size = blobs + int(removed is not None), size + (removed or 0)
        return Collected(kernels=kernels, blobs=blobs, size_bytes=size, answers=answers)

    async def preview(self) -> Collected:
        """Return what `collect` would remove now, and change nothing.

        Raises:
            StoreUnavailable: If the database or the blobs do not answer.
        """
        garbage = select(func.count(), func.coalesce(func.sum(Blob.size_bytes), 0)).where(
            Blob.touched_at < self._before(), ~_referred_to(self._doomed())
        )
        async with self._database.reading() as session:
            kernels = await session.scalar(select(func.count()).select_from(Kernel).where(self._doomed()))
            answers = await session.scalar(select(func.count()).select_from(IdempotencyRow).where(self._forgettable()))
            blobs, size = (await session.execute(garbage)).one()
        async for strays in self._strays():
            blobs, size = blobs + len(strays), size + sum(stray.size_bytes for stray in strays)
        return Collected(kernels=kernels or 0, blobs=int(blobs), size_bytes=int(size), answers=answers or 0)

    def _doomed(self) -> ColumnElement[bool]:
        """Return which kernels are forgotten."""
        ages = ((KernelStatus.REJECTED, self._config.rejected_s), (KernelStatus.RETIRED, self._config.retired_s))
        return or_(*(and_(Kernel.status == status, Kernel.updated_at < self._ago(age_s)) for status, age_s in ages))

    def _forgettable(self) -> ColumnElement[bool]:
        """Return which answers are forgotten."""
        return IdempotencyRow.created_at < self._ago(self._config.answers_s)

    async def _forget_kernels(self) -> int:
        async def forgotten(session: AsyncSession) -> list[str]:
            old = select(Kernel.id).where(self._doomed()).limit(_BATCH)
            keys = list(await session.scalars(old.with_for_update(skip_locked=True)))
            builds = CompileJobRow.kernel_id.in_(keys)
            # A build that was done would be taken for one whose kernel is still to come; what finishes one is about nothing else.
            over = (CompileJobRow.status == JobStatus.DONE) | (CompileJobRow.phase != JobPhase.BUILD)
            await session.execute(delete(CompileJobRow).where(builds, over))
            await session.execute(update(CompileJobRow).where(builds).values(kernel_id=None))
            await session.execute(delete(Kernel).where(Kernel.id.in_(keys)))
            return keys

        total = 0
        while keys := await self._database.transact(forgotten):
            total += len(keys)
        return total

    async def _forget_answers(self) -> int:
        async def forgotten(session: AsyncSession) -> int:
            old = delete(IdempotencyRow).where(self._forgettable()).returning(IdempotencyRow.key)
            return len((await session.execute(old)).all())

        return await self._database.transact(forgotten)

    async def _strays(self) -> AsyncIterator[list[BlobEntry]]:
        """Return bytes without a row, such as those of a database that was lost; their own age counts."""
        batch: list[BlobEntry] = []
        async for entry in self._blobs.entries():
            if entry.stored_at < self._before():
                batch.append(entry)
            if len(batch) == _BATCH:
                yield await self._unknown(batch)
                batch = []
        yield await self._unknown(batch)

    async def _unknown(self, batch: list[BlobEntry]) -> list[BlobEntry]:
        digests = [entry.digest for entry in batch]
        async with self._database.reading() as session:
            known = set(await session.scalars(select(Blob.digest).where(Blob.digest.in_(digests))))
        return [entry for entry in batch if entry.digest not in known]

    async def _adopt(self, strays: list[BlobEntry]) -> None:
        async def adopted(session: AsyncSession) -> None:
            for entry in strays:
                if await session.get(Blob, entry.digest) is None:
                    session.add(Blob(digest=entry.digest, size_bytes=entry.size_bytes, touched_at=entry.stored_at))

        if strays:
            await self._database.transact(adopted)

    async def _candidates(self, last: str) -> list[str]:
        query = select(Blob.digest).where(Blob.touched_at < self._before(), ~_referred_to(), Blob.digest > last)
        async with self._database.reading() as session:
            return list(await session.scalars(query.order_by(Blob.digest).limit(_BATCH)))

    async def _sweep(self, digest: str) -> int | None:
        """Remove bytes and row where they are garbage still; return how many bytes, or None."""

        async def swept(session: AsyncSession) -> int | None:
            row = await session.get(Blob, digest, with_for_update=True)
            if row is None or row.touched_at >= self._before():
                return None
            if await session.scalar(select(Blob.digest).where(Blob.digest == digest, _referred_to())) is not None:
                return None
            size = row.size_bytes
            await session.delete(row)
            await session.flush()  # whoever refers to the row stops us here, while the bytes are there still
            await self._blobs.delete(digest)
            return size

        return await self._database.transact(swept)

    def _before(self) -> float:
        return self._clock.now_s() - self._config.grace_s

    def _ago(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(self._clock.now_s() - seconds, UTC)


def _referred_to(doomed: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    """Return whether anything refers to bytes, other than kernels that are doomed, and what goes with them."""
    return or_(*(exists().where(column == Blob.digest, _stays(column, doomed)) for column in _references(Blob)))


def _references(to: type[Base]) -> list[Column[str]]:
    """Return every column that refers to a row of a table."""
    return [
        column
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if any(key.column.table is to.__table__ for key in column.foreign_keys)
    ]


def _stays(column: Column[str], doomed: ColumnElement[bool] | None) -> ColumnElement[bool]:
    if doomed is None:
        return column.is_not(None)
    kernels = select(Kernel.id).where(doomed)
    if column.table is Kernel.__table__:
        return Kernel.id.not_in(kernels)
    own = [other for other in _references(Kernel) if other.table is column.table]
    return and_(column.is_not(None), *(other.not_in(kernels) for other in own))
