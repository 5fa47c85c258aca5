"""A TCP proxy that does to connections what networks do, when it is told to.

```python
async with FaultProxy(server.port, seed=7) as proxy:
    bus = RedisBus(RedisBusConfig(url=f"redis://127.0.0.1:{proxy.port}"))
    proxy.slow(latency_s=0.02, jitter_s=0.01)
    proxy.cut(Way.DOWN, after_bytes=40)  # in the middle of an answer
    proxy.hold()  # nothing arrives, nothing is lost
    await proxy.heal()
```
"""

import asyncio
import math
import socket
import struct
from asyncio import StreamReader, StreamWriter
from enum import StrEnum
from random import Random
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65536
_TICK_S = 0.02
"""A throttled connection sends about so much at once."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""Of SO_LINGER: closing sends a reset."""


class Way(StrEnum):
    """A direction."""

    UP = "up"
    """From the client to the server."""
    DOWN = "down"
    """From the server to the client."""


class FaultProxy:
    """Listens on a port of its own and passes bytes on to a server, unchanged and in order, until a fault is asked for.

    Faults may be asked for at any time and one on top of another; `heal` ends all but what already happened.

    Args:
        port: Of the server.
        host: Of the server.
        seed: Of the jitter.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", seed: int = 0) -> None:
        self._target = (host, port)
        self._dice = Random(seed)
        self._connections: set[_Connection] = set()
        self._cuts: dict[Way, int] = {}
        self._stragglers: dict[Way, tuple[float, bytes]] = {}
        self._latency_s, self._jitter_s, self._bytes_per_s = 0.0, 0.0, math.inf
        self._flows = asyncio.Event()
        self._flows.set()
        self._swallows = False
        self._server: asyncio.Server | None = None
        self._socket = _bound(0)
        self.port: int = self._socket.getsockname()[1]

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        self.refuse()
        self._socket.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def num_connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def slow(self, *, latency_s: float = 0.0, jitter_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        """Let bytes travel slowly, each way and on each connection.

        Args:
            latency_s: How long what was sent at once is under way.
            jitter_s: At most so much longer, drawn each time.
            bytes_per_s: Bytes that get through in a second.
        """
        self._latency_s, self._jitter_s, self._bytes_per_s = latency_s, jitter_s, bytes_per_s

    def reset(self) -> None:
        """Reset every connection, at both ends."""
        for connection in set(self._connections):
            connection.reset()

    def cut(self, way: Way, *, after_bytes: int) -> None:
        """Close the connection that carries this many bytes more in a direction, behind the last of them."""
        self._cuts[way] = after_bytes

    def delay(self, way: Way, seconds: float, *, containing: bytes = b"") -> None:
        """Let the next bytes in a direction, or the next that contain something, arrive so much later than they would.

        Those sent behind them on the same connection wait; other connections go on.
        """
        self._stragglers[way] = (seconds, containing)

    def hold(self) -> None:
        """Let nothing arrive until `heal`: then what was sent meanwhile does, also on connections closed meanwhile."""
        self._flows.clear()

    def swallow(self) -> None:
        """Turn every connection, and each one made until `heal`, into a half-open one: it takes bytes and says nothing, ever.

        The server is not told that its clients are gone.
        """
        self._swallows = True
        for connection in self._connections:
            connection.swallows = True

    def refuse(self) -> None:
        """Reset every connection and let nobody connect until `heal`; the port stays this proxy's."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._socket = _bound(self.port)
        self.reset()

    async def heal(self) -> None:
        """End every fault."""
        self.slow()
        self._cuts.clear()
        self._stragglers.clear()
        self._swallows = False
        self._flows.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._socket)

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        connection = _Connection(writer, swallows=self._swallows)
        self._connections.add(connection)
        connection.task = asyncio.create_task(self._serve(connection, reader, writer))

    async def _serve(self, connection: "_Connection", reader: StreamReader, writer: StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            connection.writers.append(server_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(connection, Way.UP, reader, server_writer))
                pumps.create_task(self._pump(connection, Way.DOWN, server_reader, writer))
        except* OSError:
            connection.reset()  # one end is gone; the other learns it
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _pump(self, connection: "_Connection", way: Way, reader: StreamReader, writer: StreamWriter) -> None:
        while data := await reader.read(self._at_once()):
            await asyncio.sleep(self._delay_s(len(data)) + self._straggles_s(way, data))
            await self._flows.wait()
            if connection.swallows:
                continue
            kept = self._kept(way, data)
            writer.write(data[:kept])
            await writer.drain()
            if kept < len(data):
                connection.close()
        await self._flows.wait()
        if connection.swallows:
            await asyncio.Event().wait()  # until it is reset
        elif writer.can_write_eof():
            writer.write_eof()

    def _at_once(self) -> int:
        return max(1, round(min(_CHUNK_BYTES, self._bytes_per_s * _TICK_S)))

    def _delay_s(self, size: int) -> float:
        return self._latency_s + self._dice.uniform(0.0, self._jitter_s) + size / self._bytes_per_s

    def _straggles_s(self, way: Way, data: bytes) -> float:
        seconds, containing = self._stragglers.get(way, (0.0, b""))
        if containing not in data:
            return 0.0
        self._stragglers.pop(way, None)
        return seconds

    def _kept(self, way: Way, data: bytes) -> int:
        """Return how many of the bytes pass before a cut."""
        left = self._cuts.pop(way, None)
        if left is None or left >= len(data):
            if left is not None:
                self._cuts[way] = left - len(data)
            return len(data)
        return left


class _Connection:
    """Two sockets that belong together, and the task that serves them."""

    def __init__(self, writer: StreamWriter, *, swallows: bool) -> None:
        self.writers, self.swallows = [writer], swallows
        self.task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        for writer in self.writers:
            if not writer.transport.is_closing():
                raw: socket.socket = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                writer.transport.abort()
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def _bound(port: int) -> socket.socket:
    """Return a socket that has the port and does not listen: who connects is refused."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
