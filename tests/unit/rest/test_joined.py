"""Answers leave in one piece."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from esper.services.rest.protocol import Joined


class Counted:
    """A real transport that notes what it is told to send at once."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.sent: list[int] = []

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.sent.append(sum(map(len, pieces)))
        self._transport.writelines(pieces)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@asynccontextmanager
async def connected(
    on_connection: Callable[[Joined], None], lost: asyncio.Event
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, list[int]]]:
    """Serve one caller, and hand on what is counted."""
    made: asyncio.Future[Counted] = asyncio.get_running_loop().create_future()

    class Served(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.set_result(Counted(transport))  # type: ignore[arg-type]
            on_connection(Joined(made.result()))  # type: ignore[arg-type]

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    server = await asyncio.get_running_loop().create_server(Served, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer, (await made).sent
        writer.close()


async def test_a_head_and_its_body_are_sent_at_once() -> None:
    def answer(transport: Joined) -> None:
        transport.write(b"head ")
        transport.write(b"body")

    async with connected(answer, asyncio.Event()) as (reader, _, sent):
        assert await reader.readexactly(9) == b"head body"
    assert sent == [9]


async def test_what_is_written_before_the_end_arrives_in_order() -> None:
    def answer(transport: Joined) -> None:
        for number in range(100):
            transport.write(f"{number} ".encode())
        transport.close()

    async with connected(answer, asyncio.Event()) as (reader, _, sent):
        assert (await reader.read()).split() == [str(number).encode() for number in range(100)]
    assert len(sent) == 1


async def test_much_is_not_held() -> None:
    pieces = [bytes([number]) * 40_000 for number in range(8)]

    def answer(transport: Joined) -> None:
        for piece in pieces:
            transport.write(piece)
        transport.close()

    async with connected(answer, asyncio.Event()) as (reader, _, sent):
        assert await reader.read() == b"".join(pieces)
    assert sent == [80_000] * 4


async def test_writing_to_who_went_away_is_quiet() -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(told))
    joined: list[Joined] = []
    lost = asyncio.Event()
    async with connected(joined.append, lost) as (_, writer, sent):
        writer.transport.abort()
        await lost.wait()
        joined[0].write(b"too late")
        await asyncio.sleep(0.01)
    assert (sent, faults) == ([], [])
