"""Bytes by content address, in a local folder."""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from esper.errors import StoreUnavailable
from esper.ir import digest_of, is_digest
from esper.ports import BlobEntry
from esper.runtime.files import own_folder, sync_folder, write_whole
from esper.services.urza.digests import CHUNK_BYTES, address_of, check_range, checked, damaged, missing, verified


class LocalBlobs:
    """Keeps bytes under ``sha256/ab/abcd…`` in a folder; implements `esper.ports.BlobStore`.

    Args:
        root: The folder; it is made where it is missing.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._root = own_folder(root)

    async def put(self, data: bytes) -> str:
        """Store bytes and return their content address.

        Sound bytes at that address are left as they are; damaged ones are replaced.

        Raises:
            StoreUnavailable: If the disk is full or fails.
        """
        digest = digest_of(data)
        await asyncio.to_thread(self._put, digest, data)
        return digest

    async def get(self, digest: str) -> bytes:
        """Return the bytes at an address.

        Raises:
            ContractError: If that is no content address.
            NotFound: If there are none.
            StoreUnavailable: If they are damaged, or cannot be read.
        """
        return await asyncio.to_thread(self._get, digest)

    async def put_stream(self, digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> None:
        """Store bytes as they come: beside their place, and there once they are whole and have their digest.

        Raises:
            ContractError: If that is no content address, or they are not what was said.
            StoreUnavailable: If the disk is full or fails.
        """
        path = self.path(digest)
        aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
        try:
            await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
            with await asyncio.to_thread(aside.open, "wb") as file:
                async for chunk in checked(digest, size_bytes, chunks):
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(_end, file, aside, path)
        except OSError as error:
            raise _unreadable(digest, error) from error
        finally:
            aside.unlink(missing_ok=True)

    async def stream(self, digest: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Return bytes as they are read; see `esper.ports.BlobStore`."""
        size_bytes = await self.size(digest)
        end = check_range(digest, start, stop, size_bytes)
        chunks = self._chunks(digest, start, end)
        async for chunk in verified(digest, chunks) if end - start == size_bytes else chunks:
            yield chunk

    async def size(self, digest: str) -> int:
        """Return how many bytes there are.

        Raises:
            NotFound: If there are none.
        """
        try:
            return (await asyncio.to_thread(self.path(digest).stat)).st_size
        except FileNotFoundError as error:
            raise missing(digest) from error
        except OSError as error:
            raise _unreadable(digest, error) from error

    async def delete(self, digest: str) -> None:
        """Remove the bytes where there are any."""
        try:
            await asyncio.to_thread(self.path(digest).unlink, missing_ok=True)
        except OSError as error:
            raise _unreadable(digest, error) from error

    async def entries(self) -> AsyncIterator[BlobEntry]:
        """Return everything that is held, folder by folder."""
        for folder in await asyncio.to_thread(lambda: sorted((self._root / "sha256").glob("??"))):
            for entry in await asyncio.to_thread(lambda here: list(_held(here)), folder):
                yield entry

    async def link(self, digest: str, expires_s: float) -> str | None:
        """Return None: nobody else can read this folder."""
        return None

    def path(self, digest: str) -> Path:
        """Return where the bytes of an address lie.

        Raises:
            ContractError: If that is no content address.
        """
        return self._root / address_of(digest)

    def _put(self, digest: str, data: bytes) -> None:
        path = self.path(digest)
        try:
            if path.exists() and digest_of(path.read_bytes()) == digest:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unreadable(digest, error) from error
        write_whole(path, data)
        os.chmod(path, 0o444)

    def _get(self, digest: str) -> bytes:
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise missing(digest) from error
        except OSError as error:
            raise _unreadable(digest, error) from error
        found = digest_of(data)
        if found != digest:
            raise damaged(digest, len(data), found)
        return data

    async def _chunks(self, digest: str, start: int, end: int) -> AsyncIterator[bytes]:
        try:
            with await asyncio.to_thread(self.path(digest).open, "rb") as file:
                await asyncio.to_thread(file.seek, start)
                while start < end and (chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, end - start))):
                    start += len(chunk)
                    yield chunk
        except FileNotFoundError as error:
            raise missing(digest) from error
        except OSError as error:
            raise _unreadable(digest, error) from error


def _end(file: BinaryIO, aside: Path, path: Path) -> None:
    """Put whole bytes into their place; equal ones that are there already are replaced by the same."""
    file.flush()
    os.fsync(file.fileno())
    os.chmod(aside, 0o444)
    aside.replace(path)
    sync_folder(path.parent)


def _held(folder: Path) -> Iterator[BlobEntry]:
    for path in sorted(folder.iterdir()):
        digest = f"sha256:{path.name}"
        if is_digest(digest):
            found = path.stat()
            yield BlobEntry(digest, found.st_size, found.st_mtime)


def _unreadable(digest: str, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"the bytes at {digest[:19]} cannot be reached", why=str(error), todo="check the folder")
