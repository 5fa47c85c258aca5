"""Streams of bytes that are what they claim to be, or end in an error."""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from esper.errors import ContractError, NotFound, StoreUnavailable
from esper.ir import is_digest

CHUNK_BYTES = 1 << 20


async def checked(digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Pass bytes on that somebody sends.

    Raises:
        ContractError: At the end, if they have another digest; as soon as there are too many; or if there are too few.
    """
    counted, found = 0, hashlib.sha256()
    async for chunk in chunks:
        counted += len(chunk)
        if counted > size_bytes:
            raise _not_as_said(digest, f"there are more than the {size_bytes} bytes that were announced")
        found.update(chunk)
        yield chunk
    if counted != size_bytes:
        raise _not_as_said(digest, f"there are {counted} bytes, and {size_bytes} were announced")
    if f"sha256:{found.hexdigest()}" != digest:
        raise _not_as_said(digest, f"they have the digest sha256:{found.hexdigest()[:12]}")


async def verified(digest: str, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Pass stored bytes on, each chunk after the next one was read, and the last only if the digest is right.

    Raises:
        StoreUnavailable: If it is not.
    """
    waiting: bytes | None = None
    counted, found = 0, hashlib.sha256()
    async for chunk in chunks:
        if waiting is not None:
            yield waiting
        found.update(chunk)
        counted += len(chunk)
        waiting = chunk
    if f"sha256:{found.hexdigest()}" != digest:
        raise damaged(digest, counted, f"sha256:{found.hexdigest()}")
    if waiting:
        yield waiting


def address_of(digest: str) -> str:
    """Return where the bytes of a content address lie in a store: ``sha256/ab/abcd…``.

    Raises:
        ContractError: If that is no content address.
    """
    if not is_digest(digest):
        raise ContractError(f"{digest[:80]!r} is no content address", todo="use sha256: and 64 hex digits")
    name = digest.removeprefix("sha256:")
    return f"sha256/{name[:2]}/{name}"


def check_range(digest: str, start: int, stop: int | None, size_bytes: int) -> int:
    """Return the end of a range of bytes.

    Raises:
        ContractError: If there are no such bytes.
    """
    end = size_bytes if stop is None else min(stop, size_bytes)
    if start < 0 or start > size_bytes or end < start:
        raise ContractError(
            f"bytes {start} to {stop} of {digest[:19]} cannot be read", why=f"it has {size_bytes} bytes"
        )
    return end


def damaged(digest: str, size_bytes: int, found: str) -> StoreUnavailable:
    """Return the error for bytes that have another digest than theirs."""
    return StoreUnavailable(
        f"the bytes at {digest[:19]} are damaged",
        why=f"{size_bytes} bytes with the digest {found[:19]}",
        todo="look after the disk, then compile the blueprint again",
        code="ESP-4210",
    )


def missing(digest: str) -> NotFound:
    """Return the error for bytes that are not there."""
    return NotFound(f"there are no bytes at {digest}", todo="compile the blueprint again")


def _not_as_said(digest: str, why: str) -> ContractError:
    return ContractError(
        f"the bytes of {digest[:19]} were not stored", why=why, todo="send them again", code="ESP-3210"
    )
