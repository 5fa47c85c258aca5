"""Bytes of kernels on their way in and out, with memory for a few pieces of them."""

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from esper.contracts.store_calls import Stored
from esper.errors import ContractError
from esper.services.urza.rest.ranges import placed
from esper.services.urza.rest.state import Serving

BINARY = "application/octet-stream"
SMALL_BYTES = 1 << 20
"""What is not longer is read whole, and kept in memory where there is room."""


async def sent(
    serving: Serving, kernel_id: str, size: int, wanted: tuple[int | None, int | None] | None, headers: dict[str, str]
) -> Response:
    """Return the bytes of a validated kernel, or the part of them that was asked for.

    Raises:
        ContractError: If there is no such part.
    """
    first, end, status = 0, size, 200
    if wanted is not None:
        place = placed(wanted, size)
        if place is None:
            raise ContractError("the bytes have no such part", why=f"there are {size}", code="ESP-3415")
        (first, end), status = place, 206
        headers = {**headers, "Content-Range": f"bytes {first}-{end - 1}/{size}"}
    if size <= SMALL_BYTES:
        return Response((await _small(serving, kernel_id))[first:end], status, headers, BINARY)
    headers["Content-Length"] = str(end - first)
    return await streamed(await serving.manager.stream(kernel_id, first, end), status, headers)


async def streamed(chunks: AsyncIterator[bytes], status: int, headers: dict[str, str]) -> Response:
    """Return bytes as they are read; what is missing or damaged at once is told before the answer begins."""
    pieces = aiter(chunks)
    begun = await anext(pieces)
    return StreamingResponse(_from(begun, pieces), status, headers, BINARY)


async def received(request: Request, serving: Serving, digest: str) -> Stored:
    """Store the body of a request under its digest, as it comes.

    Raises:
        ContractError: If its length was not said, or the body is something else.
    """
    length = request.headers.get("content-length")
    if length is None:
        raise ContractError("the length of the body is needed", todo="send Content-Length", code="ESP-3414")
    await serving.manager.upload(digest, int(length), request.stream())
    return Stored(digest=digest, size_bytes=int(length))


async def _small(serving: Serving, kernel_id: str) -> bytes:
    data = serving.immutable.get(kernel_id)
    serving.metrics.cached.labels("no" if data is None else "yes").inc()
    if data is None:
        data = await serving.manager.read(kernel_id)
        serving.immutable.put(kernel_id, data)
    return data


async def _from(begun: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for piece in pieces:
        yield piece
