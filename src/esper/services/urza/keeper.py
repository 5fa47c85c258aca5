"""Bytes with the row that says that somebody needs them, so that garbage collection never takes what a writer refers to."""

from collections.abc import AsyncIterable

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from esper.errors import NotFound
from esper.ir import digest_of
from esper.ports import BlobStore, Clock
from esper.services.urza.database import Database
from esper.services.urza.models import Blob


class BlobKeeper:
    """Puts bytes in three steps that a crash may end anywhere: say that they are needed, store them, refer to them.

    The first step moves the time from which the grace of garbage collection counts; a collector that holds the row ends first,
    and then the second step finds the bytes gone and stores them again. A row that refers to bytes has a foreign key to
    theirs, so it cannot outlive them.

    Args:
        database: Where the rows are.
        blobs: Where the bytes are.
        clock: Tells when.
    """

    def __init__(self, database: Database, blobs: BlobStore, clock: Clock) -> None:
        self.blobs = blobs
        self._database, self._clock = database, clock

    async def put(self, data: bytes) -> str:
        """Store bytes and read them back, digest and all; who refers to them does so within the grace.

        Returns:
            Their content address.

        Raises:
            StoreUnavailable: If they could not be stored.
        """
        digest = digest_of(data)
        await self.need(digest, len(data))
        await self.store(data)
        return digest

    async def store(self, data: bytes) -> None:
        """Store bytes that `need` or `needed` spoke for, and read them back.

        Raises:
            StoreUnavailable: If they could not be stored.
        """
        await self.blobs.get(await self.blobs.put(data))

    async def put_stream(self, digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> None:
        """Store bytes as they come; who refers to them does so within the grace.

        Raises:
            ContractError: If they are not what was said; nothing is stored then.
            StoreUnavailable: If they could not be stored.
        """
        await self._database.apply(lambda session: self._say(session, digest, size_bytes, is_certain=False))
        await self.blobs.put_stream(digest, size_bytes, chunks)

    async def need(self, digest: str, size_bytes: int) -> None:
        """Say that somebody is about to store and refer to bytes."""
        await self._database.apply(lambda session: self.needed(session, digest, size_bytes))

    def needed(self, session: Session, digest: str, size_bytes: int) -> None:
        """Do the same within a transaction: bytes are stored once it is committed."""
        self._say(session, digest, size_bytes, is_certain=True)

    def _say(self, session: Session, digest: str, size_bytes: int, *, is_certain: bool) -> None:
        """Write the row of bytes; a size that a sender only claims takes the place of none that is there."""
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        said = insert(Blob).values(digest=digest, size_bytes=size_bytes, touched_at=self._clock.now_s())
        told = {
            name: said.excluded[name] for name in ("size_bytes", "touched_at") if is_certain or name == "touched_at"
        }
        session.execute(said.on_conflict_do_update(index_elements=[Blob.digest], set_=told))

    async def touch(self, digest: str) -> int:
        """Say that somebody is about to refer to bytes that are stored.

        Returns:
            Their size.

        Raises:
            NotFound: If they are not there.
        """

        def touched(session: Session) -> int:
            row = session.get(Blob, digest, with_for_update=True)
            if row is None:
                raise NotFound(f"there are no bytes at {digest[:80]}", todo="upload them first")
            row.touched_at = self._clock.now_s()
            return row.size_bytes

        claimed = await self._database.apply(touched)
        size = await self.blobs.size(digest)
        if size != claimed:
            await self.need(digest, size)
        return size
