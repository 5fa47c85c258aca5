"""Bytes by content address, in a bucket of any store that speaks S3."""

import asyncio
import atexit
import functools
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.exceptions import NotFoundError as NoObject
from obstore.store import S3Store
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from esper.errors import StoreUnavailable
from esper.ir import digest_of, is_digest
from esper.ports import BlobEntry
from esper.services.urza.digests import CHUNK_BYTES, address_of, check_range, checked, damaged, missing, verified

_PART_BYTES = 8 << 20
"""S3 takes parts of 5 MiB and more, and at most 10,000 of them: artifacts of up to 78 GiB."""
_PARTS_AT_ONCE = 4
_LAST_CALLS_S = 0.2
"""obstore's threads let go of Python objects shortly after their answers are in; an interpreter that is gone by then aborts
(seen with 0.12 in 3 of 25 processes that ended right after a stream, in none with this pause)."""


class S3Config(BaseModel):
    """Which bucket, and how it is reached.

    Attributes:
        bucket: Its name.
        endpoint: Address of a store other than Amazon's, such as ``http://minio:9000``.
        region: Where it is.
        access_key_id: Who we are; where it is left out, what the machine's role or the usual ``AWS_`` variables say.
        secret_access_key: How we prove it.
        prefix: Folder of the bucket for everything that is written.
        timeout_s: How long one request may take.
        retry_s: How long a request that failed is tried again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str = Field(min_length=3, max_length=63)
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    prefix: str = ""
    timeout_s: float = Field(default=60.0, gt=0)
    retry_s: float = Field(default=10.0, gt=0)


@functools.cache
def _let_last_calls_end() -> None:
    """Wait a moment at the end of this process."""
    atexit.register(time.sleep, _LAST_CALLS_S)


class S3Blobs:
    """Keeps bytes under ``sha256/ab/abcd…`` in a bucket; implements `esper.ports.BlobStore`.

    An upload that is cut short leaves no object, only parts that nobody can read; let the bucket forget incomplete uploads
    after a day.

    Args:
        config: Which bucket.
    """

    def __init__(self, config: S3Config) -> None:
        _let_last_calls_end()
        given = {
            "endpoint": config.endpoint,
            "access_key_id": config.access_key_id,
            "secret_access_key": config.secret_access_key and config.secret_access_key.get_secret_value(),
        }
        self._limit_s = config.timeout_s + config.retry_s
        self._store = S3Store(
            config.bucket,
            prefix=config.prefix or None,
            region=config.region,
            client_options={"allow_http": True, "timeout": timedelta(seconds=config.timeout_s)},
            retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=config.retry_s)},
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )

    async def put(self, data: bytes) -> str:
        """Store bytes and return their content address; sound bytes that are there are left as they are, damaged ones replaced.

        Raises:
            StoreUnavailable: If the bucket does not answer.
        """
        digest = await asyncio.to_thread(digest_of, data)
        address = address_of(digest)
        with _translated(digest):
            try:
                await obstore.put_async(self._store, address, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                if (await self._read(digest))[1] != digest:
                    await obstore.put_async(self._store, address, data, mode="overwrite", use_multipart=False)
        return digest

    async def _read(self, digest: str) -> tuple[bytes, str]:
        """Return the bytes at an address, and the digest that they have."""
        with _translated(digest):
            answer = await obstore.get_async(self._store, address_of(digest))
            data = bytes(await answer.bytes_async())
        return data, await asyncio.to_thread(digest_of, data)

    async def get(self, digest: str) -> bytes:
        """Return the bytes at an address.

        Raises:
            ContractError: If that is no content address.
            NotFound: If there are none.
            StoreUnavailable: If they are damaged, or the bucket does not answer.
        """
        data, found = await self._read(digest)
        if found != digest:
            raise damaged(digest, len(data), found)
        return data

    async def put_stream(self, digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> None:
        """Store bytes as they come, in parts; the object appears once they are whole and have their digest.

        Raises:
            ContractError: If that is no content address, or they are not what was said.
            StoreUnavailable: If the bucket does not answer.
        """
        with _translated(digest):
            # No context manager: leaving one after an error would finish the upload.
            file = obstore.open_writer_async(
                self._store, address_of(digest), buffer_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            )
            async for chunk in checked(digest, size_bytes, chunks):
                async with asyncio.timeout(self._limit_s):
                    await file.write(chunk)
            async with asyncio.timeout(self._limit_s):
                await file.close()
        stored = await self.size(digest)
        if stored != size_bytes:
            raise damaged(digest, stored, "of another length")

    async def stream(self, digest: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Return bytes as they are read; see `esper.ports.BlobStore`."""
        size_bytes = await self.size(digest)
        end = check_range(digest, start, stop, size_bytes)
        if end == start and size_bytes:
            return
        chunks = self._chunks(digest, start, end)
        async for chunk in verified(digest, chunks) if end - start == size_bytes else chunks:
            yield chunk

    async def size(self, digest: str) -> int:
        """Return how many bytes there are.

        Raises:
            NotFound: If there are none.
        """
        with _translated(digest):
            return int((await obstore.head_async(self._store, address_of(digest)))["size"])

    async def delete(self, digest: str) -> None:
        """Remove the bytes where there are any."""
        with _translated(digest):
            try:
                await obstore.delete_async(self._store, address_of(digest))
            except NoObject:
                return

    async def entries(self) -> AsyncIterator[BlobEntry]:
        """Return everything that is held."""
        with _translated("sha256:"):
            async for page in obstore.list(self._store, "sha256", chunk_size=1_000):
                for held in page:
                    digest = f"sha256:{held['path'].rpartition('/')[2]}"
                    if is_digest(digest):
                        yield BlobEntry(digest, held["size"], held["last_modified"].timestamp())

    async def link(self, digest: str, expires_s: float) -> str | None:
        """Return an address from which anybody may read the bytes for a while."""
        with _translated(digest):
            return await obstore.sign_async(self._store, "GET", address_of(digest), timedelta(seconds=expires_s))

    async def _chunks(self, digest: str, start: int, end: int) -> AsyncIterator[bytes]:
        if start == end:
            return
        with _translated(digest):
            answer = await obstore.get_async(self._store, address_of(digest), options={"range": (start, end)})
            chunks = aiter(answer.stream(min_chunk_size=CHUNK_BYTES))
            while True:
                async with asyncio.timeout(self._limit_s):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield bytes(chunk)


@contextmanager
def _translated(digest: str) -> Iterator[None]:
    try:
        yield
    except (NoObject, FileNotFoundError) as error:
        raise missing(digest) from error
    except (BaseError, OSError) as error:
        raise StoreUnavailable(
            f"the bytes at {digest[:19]} cannot be reached",
            why=str(error).partition("\n")[0][:300],
            todo="look whether the bucket, and our right to it, are there",
        ) from error
