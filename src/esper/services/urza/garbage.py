"""What the store lets go: kernels that nobody may use any more, and bytes that nothing refers to.

Mark and sweep, with grace. Whoever writes says first that they need the bytes (`esper.services.urza.keeper`), which moves the
time from which the grace counts. The sweep takes each row of garbage under a lock, looks again, and removes bytes and row
before it lets go: a writer of the same bytes either was first, and then they stay, or waits, and then finds them gone and
stores them again. A crash in between leaves a row without bytes that nothing refers to, which the next sweep removes.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.kernel import JobPhase, KernelStatus
from esper.ports import BlobEntry, BlobStore, Clock
from esper.services.urza.access import IdempotencyRow
from esper.services.urza.database import Database
from esper.services.urza.models import Blob, CompileJobRow, InferenceFormRow, JobStatus, Kernel

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
    """What one collection removed."""

    kernels: int
    blobs: int
    bytes: int
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
        kernels = await self._forget_kernels(KernelStatus.REJECTED, self._config.rejected_s)
        kernels += await self._forget_kernels(KernelStatus.RETIRED, self._config.retired_s)
        answers = await self._forget_answers()
        await self._adopt_strays()
        blobs = size = 0
        last = ""
        while candidates := await self._candidates(last):
            last = candidates[-1]
            for digest in candidates:
                removed = await self._sweep(digest)
                blobs, size = blobs + int(removed is not None), size + (removed or 0)
        return Collected(kernels=kernels, blobs=blobs, bytes=size, answers=answers)

    async def _forget_kernels(self, status: KernelStatus, age_s: float) -> int:
        before = datetime.fromtimestamp(self._clock.now_s() - age_s, UTC)

        async def forgotten(session: AsyncSession) -> list[str]:
            old = select(Kernel.id).where(Kernel.status == status, Kernel.updated_at < before).limit(_BATCH)
            keys = list(await session.scalars(old.with_for_update(skip_locked=True)))
            builds = CompileJobRow.kernel_id.in_(keys)
            # A build that was done would be taken for one whose kernel is still to come; what finishes one is about nothing else.
            over = (CompileJobRow.status == JobStatus.DONE) | (CompileJobRow.phase == JobPhase.FINISH)
            await session.execute(delete(CompileJobRow).where(builds, over))
            await session.execute(update(CompileJobRow).where(builds).values(kernel_id=None))
            await session.execute(delete(Kernel).where(Kernel.id.in_(keys)))
            return keys

        total = 0
        while keys := await self._database.transact(forgotten):
            total += len(keys)
        return total

    async def _forget_answers(self) -> int:
        before = datetime.fromtimestamp(self._clock.now_s() - self._config.answers_s, UTC)

        async def forgotten(session: AsyncSession) -> int:
            old = delete(IdempotencyRow).where(IdempotencyRow.created_at < before).returning(IdempotencyRow.key)
            return len((await session.execute(old)).all())

        return await self._database.transact(forgotten)

    async def _adopt_strays(self) -> None:
        """Give a row to bytes that have none, such as those of a database that was lost; their own age counts."""
        async for entry in self._blobs.entries():
            if entry.stored_at >= self._before():
                continue
            async with self._database.reading() as session:
                known = await session.scalar(select(Blob.digest).where(Blob.digest == entry.digest))
            if known is None:
                await self._database.transact(partial(_adopted, entry))

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
            if await session.scalar(select(_referred_to()).where(Blob.digest == digest)):
                return None
            await self._blobs.delete(digest)
            await session.delete(row)
            return row.size_bytes

        return await self._database.transact(swept)

    def _before(self) -> float:
        return self._clock.now_s() - self._config.grace_s


def _referred_to() -> ColumnElement[bool]:
    forms = exists().where(InferenceFormRow.digest == Blob.digest)
    return exists().where(Kernel.kernel_binary_ref == Blob.digest) | forms


async def _adopted(entry: BlobEntry, session: AsyncSession) -> None:
    if await session.get(Blob, entry.digest) is None:
        session.add(Blob(digest=entry.digest, size_bytes=entry.size_bytes, touched_at=entry.stored_at))
