"""The proxy passes bytes on, and does what it is told to do to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from esper.testing.proxy import FaultProxy, Way

SILENCE_S = 0.15


class Echo:
    """A server that answers every byte with itself, and keeps what it was sent."""

    def __init__(self) -> None:
        self.port = 0
        self.received = b""
        self.ends: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
            self.ends.append("closed")
        except ConnectionResetError:
            self.ends.append("reset")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(echo.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert caplog.records == []


class Client:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def says_nothing(self, data: bytes) -> bool:
        self.writer.write(data)
        try:
            async with asyncio.timeout(SILENCE_S):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def until(holds: Callable[[], object]) -> None:
    ends_at = time.monotonic() + 5.0
    while not holds():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.005)


async def test_bytes_pass_unchanged_and_in_order_on_many_connections(proxy: FaultProxy) -> None:
    async def talk(n: int) -> None:
        data = bytes([n]) * 300_000
        async with connected(proxy) as client:
            assert await client.ask(data) == data

    await asyncio.gather(*(talk(n) for n in range(5)))
    await until(lambda: proxy.num_connections == 0)


async def test_an_end_is_passed_on_and_answers_still_arrive(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        client.writer.write(b"abc")
        client.writer.write_eof()
        assert await client.reader.read() == b"abc"
    assert echo.ends == ["closed"]


async def test_latency_is_felt_each_way_and_ends_with_heal(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a")
        proxy.slow(latency_s=0.1)
        start = time.monotonic()
        await client.ask(b"a")
        assert time.monotonic() - start >= 0.2
        await proxy.heal()
        start = time.monotonic()
        await client.ask(b"a")
        assert time.monotonic() - start < 0.2


async def test_jitter_is_drawn_from_the_seed() -> None:
    def delays(seed: int) -> list[float]:
        proxy = FaultProxy(1, seed=seed)
        proxy.slow(jitter_s=1.0)
        proxy._socket.close()
        return [proxy._delay_s(10) for _ in range(5)]

    assert delays(1) == delays(1) != delays(2)
    assert all(0 <= delay <= 1 for delay in delays(1))


async def test_a_throttled_connection_carries_no_more_than_it_may(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        proxy.slow(bytes_per_s=20_000)
        start = time.monotonic()
        await client.ask(b"x" * 5_000)
        assert time.monotonic() - start >= 0.25


async def test_a_reset_reaches_both_ends(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)
        await until(lambda: echo.ends == ["reset"])
    async with connected(proxy) as client:
        assert await client.ask(b"b") == b"b"


@pytest.mark.parametrize("way", list(Way))
async def test_a_message_is_cut_where_it_was_asked_for(way: Way, proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client, connected(proxy) as other:
        await client.ask(b"12345")
        proxy.cut(way, after_bytes=7)
        await client.ask(b"abc")
        client.writer.write(b"defghijk")
        assert await client.reader.read() == (b"" if way is Way.UP else b"defg")
        await until(lambda: echo.ends)
        assert echo.received == b"12345abcdefg" + (b"" if way is Way.UP else b"hijk")
        assert await other.ask(b"others are spared") == b"others are spared"


async def test_one_message_may_arrive_late_while_others_pass(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client, connected(proxy) as other:
        proxy.delay(Way.UP, 0.2, containing=b"bc")
        assert await client.ask(b"a") == b"a"
        client.writer.write(b"bcd")
        await asyncio.sleep(0.02)
        assert await other.ask(b"bc") == b"bc"
        assert echo.received == b"abc"
        assert await client.reader.readexactly(3) == b"bcd"


async def test_what_is_held_arrives_in_the_end(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client, connected(proxy) as closed:
        await closed.ask(b"-")
        proxy.hold()
        assert await client.says_nothing(b"a")
        async with connected(proxy) as late:
            assert await late.says_nothing(b"b")
            closed.writer.write(b"c")
            closed.writer.close()
            await asyncio.sleep(0.02)
            assert echo.received == b"-"
            await proxy.heal()
            assert await client.reader.readexactly(1) == b"a"
            assert await late.reader.readexactly(1) == b"b"
            await until(lambda: b"c" in echo.received)


async def test_a_half_open_connection_takes_bytes_and_never_speaks_again(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a")
        proxy.swallow()
        assert await client.says_nothing(b"b")
        async with connected(proxy) as new:
            assert await new.says_nothing(b"c")
            await proxy.heal()
            assert await new.says_nothing(b"d")
        client.writer.close()
        async with connected(proxy) as healthy:
            assert await healthy.ask(b"e") == b"e"
        await asyncio.sleep(0.02)
        assert echo.received == b"ae"
        assert echo.ends == ["closed"], "the server was told that the half-open ones are gone"


async def test_nobody_connects_while_it_refuses_and_the_port_stays_its_own(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a")
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.heal()
    async with connected(proxy) as client:
        assert await client.ask(b"b") == b"b"


async def test_a_server_that_is_gone_closes_the_connection() -> None:
    async with FaultProxy(1) as proxy, connected(proxy) as client:
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)
    await until(lambda: proxy.num_connections == 0)


async def test_it_ends_while_everything_is_held_or_swallowed(echo: Echo) -> None:
    async with asyncio.timeout(5):
        async with FaultProxy(echo.port) as proxy, connected(proxy) as client:
            await client.ask(b"a")
            proxy.hold()
            proxy.swallow()
            assert await client.says_nothing(b"b")
