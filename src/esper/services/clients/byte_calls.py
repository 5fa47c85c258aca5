"""Bytes of a store over HTTP, up and down, verified."""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from esper.contracts.kernel import (
    CompiledKernelArtifact,
    CompiledKernelContract,
    InferenceArtifact,
    ValidationResult,
)
from esper.contracts.store_calls import (
    ArtifactHead,
    Link,
    Stored,
    check_part,
    stated,
)
from esper.errors import ContractError, KernelRejected, StoreUnavailable
from esper.ir import digest_of, is_digest
from esper.services.clients.messages import Request, unexpected
from esper.services.clients.store_calls import API, StoreCalls, part

PIECE_BYTES = 256 * 1024


class ByteCalls(StoreCalls):
    """Moves the bytes of kernels and forms."""

    async def read(self, kernel_id: str) -> bytes:
        """Return the bytes of a validated kernel, digest verified; as many as `TransportConfig.most_bytes` at most."""
        reply = await self._got(f"/kernels/{part(kernel_id)}/bytes")
        if digest_of(reply.body) != kernel_id:
            raise _damaged(kernel_id)
        return reply.body

    async def read_form(self, kernel_id: str, digest: str) -> bytes:
        """Return the bytes of a form, digest verified; whoever loads them verifies the seal."""
        reply = await self._got(f"/kernels/{part(kernel_id)}/forms/{part(digest)}")
        if digest_of(reply.body) != digest:
            raise _damaged(digest)
        return reply.body

    @asynccontextmanager
    async def stream(
        self, kernel_id: str, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the bytes of a validated kernel in pieces, or a range of one byte or more.

        Args:
            kernel_id: The kernel.
            start: The first byte.
            stop: The one after the last; the end of the kernel where none is said.

        Returns:
            Pieces. The last of the whole is followed by an error where the digest is wrong; of a part the store alone sees that.

        Raises:
            ContractError: If the part has no byte.
        """
        is_part = check_part(start, stop)
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if is_part else {}
        request = Request("GET", f"{API}/kernels/{part(kernel_id)}/bytes", headers=headers)
        async with self.transport.download(request) as (reply, pieces):
            if is_part and reply.status != 206:
                raise unexpected("the whole in place of a part")
            yield pieces if is_part else _verified(pieces, kernel_id)

    async def link(self, kernel_id: str, *, expires_s: float) -> str | None:
        """Return an address from which a validated kernel can be read for a while, or None where the store has no such."""
        query: dict[str, str] = {"expires_s": str(expires_s)}
        request = Request("GET", f"{API}/kernels/{part(kernel_id)}/link", query=query)
        return (await self.transport.call(request)).read_as(Link).url

    async def download(self, kernel_id: str, path: Path) -> int:
        """Write the bytes of a validated kernel to a file, which is there whole and verified or not at all.

        Returns:
            How many they are.
        """
        aside = path.with_name(f".{path.name}.part")
        size = 0
        try:
            with aside.open("wb") as file:
                async with self.stream(kernel_id) as pieces:
                    async for piece in pieces:
                        size += file.write(piece)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return size

    async def upload_bytes(self, data: bytes | Path) -> Stored:
        """Store bytes under their digest, from memory or from a file of any length."""
        digest = await _digest_of_file(data) if isinstance(data, Path) else digest_of(data)
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if isinstance(data, bytes) and size <= PIECE_BYTES:
            request = _upload(digest, size)
            return (await self.transport.call(replace(request, body=data))).read_as(Stored)
        await self.upload(digest, size, _pieces(data))
        return Stored(digest=digest, size_bytes=size)

    async def upload(self, digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> None:
        """Store bytes as they come, for `register_uploaded` or `complete_uploaded` to refer to; it is tried once.

        Raises:
            ContractError: If they are not what was said; nothing is stored then.
        """
        await self.transport.upload(_upload(digest, max(0, size_bytes)), _counted(digest, size_bytes, chunks))

    async def upload_kernel(self, artifact: CompiledKernelArtifact) -> CompiledKernelContract:
        """Store a kernel that waits for its validation; one that is there is left as it is."""
        check_bytes(artifact)
        await self.upload_bytes(artifact.kernel_binary)
        return await self.register_uploaded(artifact)

    async def register_uploaded(self, artifact: CompiledKernelArtifact) -> CompiledKernelContract:
        """Do the same for a kernel whose bytes were uploaded before; its ``kernel_binary`` is not looked at."""
        with stated():
            body = ArtifactHead.of(artifact)
        return await self._posted("/kernels", body, CompiledKernelContract)

    async def store_report(self, report: ValidationResult) -> CompiledKernelContract:
        """Store what the validator found about a kernel that waits for it."""
        path = f"/kernels/{part(report.kernel_id)}/report"
        return (await self._sent("PUT", path, report)).read_as(CompiledKernelContract)

    async def _upload_forms(self, forms: Sequence[InferenceArtifact]) -> None:
        for made in forms:
            await self.upload_bytes(made.data)


def _upload(digest: str, size_bytes: int) -> Request:
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
    return Request("PUT", f"{API}/blobs/{part(digest)}", headers=headers)


def check_bytes(artifact: CompiledKernelArtifact) -> None:
    """Refuse an artifact that is not what it says it is, as the store would."""
    found = digest_of(artifact.kernel_binary)
    if found != artifact.artifact_id:
        raise KernelRejected(
            f"artifact {artifact.artifact_id[:80]} was not stored",
            why=f"its bytes have the digest {found}",
            todo="compile it again",
        )


async def _counted(digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield as many bytes as were announced, or fail: the store would wait for what is missing until its patience ends."""
    count = 0
    async for chunk in chunks:
        count += len(chunk)
        if count > size_bytes:
            break
        yield chunk
    if count != size_bytes:
        raise ContractError(
            f"the bytes of {digest[:19]} were not stored",
            why=f"there are {'more' if count > size_bytes else count}, and {size_bytes} were announced",
            todo="send them again",
            code="ESP-3210",
        )


async def _verified(pieces: AsyncIterator[bytes], digest: str) -> AsyncIterator[bytes]:
    found = hashlib.sha256()
    async for piece in pieces:
        found.update(piece)
        yield piece
    if f"sha256:{found.hexdigest()}" != digest:
        raise _damaged(digest)


async def _pieces(data: bytes | Path) -> AsyncIterator[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]
        return
    with data.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece


async def _digest_of_file(path: Path) -> str:
    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return f"sha256:{await asyncio.to_thread(digest)}"


def _damaged(digest: str) -> StoreUnavailable:
    wrong = "" if is_digest(digest) else "; that is no content address"
    return StoreUnavailable(
        f"the bytes of {digest[:80]} arrived with another digest{wrong}", todo="try again, or look after the store"
    )


__all__ = ["ByteCalls", "check_bytes"]
