"""The artifact store, whole."""

from collections.abc import AsyncIterable
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from esper.ports import BlobStore, Clock
from esper.runtime.clock import SystemClock
from esper.runtime.files import own_folder
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.catalogue import Catalogue
from esper.services.urza.database import Database, close_engine, engine_at, prepare
from esper.services.urza.forms import Forms
from esper.services.urza.garbage import GarbageCollector, RetentionConfig
from esper.services.urza.jobs import JobQueue
from esper.services.urza.keeper import BlobKeeper
from esper.services.urza.kernel_cache import PersistentKernelCache as PersistentKernelCache
from esper.services.urza.line import Line
from esper.services.urza.outbox import Outbox
from esper.services.urza.reviews import Reviews
from esper.services.urza.uploads import Uploads
from esper.services.urza.withdrawals import Withdrawals


class KernelManager(Catalogue, JobQueue, Forms, Reviews, Uploads, Withdrawals):
    """Keeps blueprints and kernels: implements `esper.ports.Library` and `esper.ports.CompileQueue`.

    ```python
    async with await KernelManager.open(root / "library") as manager:
        await manager.submit(BlueprintSubmissionRequest(name="mine", architecture_ir=ir.to_json()))
    ```

    Args:
        db_session: An engine whose tables exist (see `esper.services.urza.database.prepare`), or a factory of sessions.
        s3_client: Where the bytes of kernels are kept.
        clock: Measures leases.

    Attributes:
        database: Its transactions, for what lies beside it in the same database.
        outbox: Announcements that wait.
        line: Tells builds that wait where they stand; run it beside a relay.
    """

    def __init__(
        self,
        db_session: AsyncEngine | async_sessionmaker[AsyncSession],
        s3_client: BlobStore,
        *,
        clock: Clock | None = None,
    ) -> None:
        database, clock = Database(db_session), clock or SystemClock()
        self.database, self.outbox = database, Outbox(database)
        self._engine: AsyncEngine | None = None
        self.line = Line(database, self.outbox, clock)
        Catalogue.__init__(self, database, s3_client, self.outbox, clock, self.line)
        self._keeper = BlobKeeper(database, s3_client, clock)
        JobQueue.__init__(self, database, self._keeper, clock, self.line)
        Forms.__init__(self, database, self._keeper, s3_client, clock)
        Reviews.__init__(self, database, clock)
        Uploads.__init__(self, database, self._keeper)
        Withdrawals.__init__(self, database, self.outbox, clock, self.line)

    @classmethod
    async def at(cls, url: str, blobs: BlobStore, *, clock: Clock | None = None) -> Self:
        """Open the library in a database, whose tables are made where there are none.

        Args:
            url: ``sqlite:///file.db``, or ``postgresql://user:password@host/name``.
            blobs: Where the bytes of kernels are kept.
            clock: Measures leases.

        Raises:
            ConfigError: If that is no such address, or another version of Esper made the tables.
            StoreUnavailable: If the database does not answer.
        """
        engine = engine_at(url)
        try:
            await prepare(engine)
        except BaseException:
            await close_engine(engine)
            raise
        manager = cls(engine, blobs, clock=clock)
        manager._engine = engine
        return manager

    @classmethod
    async def open(cls, root: Path, *, clock: Clock | None = None) -> Self:
        """Open the library in a folder, made where it is missing; several processes may have it open at once.

        Args:
            root: The folder: SQLite in ``library.db``, bytes in ``blobs``.
            clock: Measures leases.

        Raises:
            ConfigError: If the folder cannot be written, or another version of Esper made the library.
            StoreUnavailable: If its database is damaged or stays locked.
        """
        blobs = LocalBlobs(own_folder(root) / "blobs")
        return await cls.at(f"sqlite:///{root / 'library.db'}", blobs, clock=clock)

    async def upload(self, digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> None:
        """Store the bytes of a kernel as they come, for `complete_uploaded` to refer to.

        Raises:
            ContractError: If they are not what was said; nothing is stored then.
            StoreUnavailable: If they could not be stored.
        """
        await self._keeper.put_stream(digest, size_bytes, chunks)

    async def close(self) -> None:
        """Close the connections that `open` or `at` made, and those of reads."""
        try:
            await self.database.close()
        finally:
            if self._engine is not None:
                await close_engine(self._engine)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def collector_of(manager: KernelManager, config: RetentionConfig | None = None) -> GarbageCollector:
    """Return what removes from a library what retention allows."""
    return GarbageCollector(manager.database, manager._keeper.blobs, manager._clock, config)


__all__ = ["KernelManager", "PersistentKernelCache", "collector_of"]
