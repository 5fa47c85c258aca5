"""Which server a command goes to: the only one, the master that sentinels name, or the node that holds the key."""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import MovedError, RedisError

from esper.errors import ConfigError
from esper.services.oona.redis_address import Address, Kind

Connect: TypeAlias = Callable[[str], Redis]

_TRUST_S = 10.0
"""How long a master is believed to be it: one that was cut off from the rest does not know that it no longer is."""
_NOT_REACHED = (RedisError, OSError, TimeoutError)


class Route(Protocol):
    """Finds the server for a command."""

    async def client(self, key: bytes | None) -> Redis:
        """Return the server that holds a key, or any where there is none."""
        ...

    async def clients(self) -> list[Redis]:
        """Return every server that holds keys of its own."""
        ...

    def moved(self, error: MovedError) -> None:
        """Take note that a key has moved."""
        ...

    def lost(self, client: Redis) -> None:
        """Take note that a server did not answer, or may not write."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


def route_to(address: Address, connect: Connect, connect_sentinel: Connect, limit_s: float) -> Route:
    """Return the route for an address.

    Args:
        address: Where Redis is.
        connect: Makes the client of a server, which does not connect yet.
        connect_sentinel: Makes the client of a sentinel.
        limit_s: How long a command may take.
    """
    if address.kind is Kind.SENTINEL:
        return Sentinels(address, connect, connect_sentinel, limit_s)
    if address.kind is Kind.CLUSTER:
        return Cluster(address, connect, limit_s)
    return OneServer(connect(address.urls[0]))


class OneServer:
    """The only server there is."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def client(self, key: bytes | None) -> Redis:
        """Return it."""
        return self._client

    async def clients(self) -> list[Redis]:
        """Return it."""
        return [self._client]

    def moved(self, error: MovedError) -> None:
        """Say that the address should name a cluster."""
        raise ConfigError(
            "this Redis is part of a cluster", why=str(error), todo="write redis+cluster:// in place of redis://"
        ) from error

    def lost(self, client: Redis) -> None:
        """Do nothing: it is tried again."""

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


class Sentinels:
    """The master that sentinels name; they are asked at the beginning, after trouble, and now and then."""

    def __init__(self, address: Address, connect: Connect, connect_sentinel: Connect, limit_s: float) -> None:
        self._address, self._connect = address, connect
        self._sentinels = deque(connect_sentinel(url) for url in address.urls)
        self._each_s = limit_s / (len(self._sentinels) + 1)
        self._at: tuple[str, int] | None = None
        self._master: Redis | None = None
        self._ask_at = 0.0
        self._asking = asyncio.Lock()

    async def client(self, key: bytes | None) -> Redis:
        """Return the master."""
        if self._master is None or asyncio.get_running_loop().time() >= self._ask_at:
            async with self._asking:
                await self._look()
        assert self._master is not None
        return self._master

    async def clients(self) -> list[Redis]:
        """Return the master."""
        return [await self.client(None)]

    def moved(self, error: MovedError) -> None:
        """Say that sentinels do not watch over clusters."""
        raise ConfigError("this Redis is part of a cluster", why=str(error), todo="write redis+cluster://") from error

    def lost(self, client: Redis) -> None:
        """Ask the sentinels before the next command."""
        self._ask_at = 0.0

    async def close(self) -> None:
        """Close every connection."""
        for client in (*self._sentinels, *([self._master] if self._master else [])):
            await client.aclose()

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._master is not None and now < self._ask_at:
            return  # somebody else has asked meanwhile
        named = await self._named()
        if named is None and self._master is None:
            raise NoConnection(f"no sentinel answers about {self._address.service}")
        self._ask_at = now + _TRUST_S
        if named is None or named == self._at:
            return
        before, self._at, self._master = self._master, named, self._connect(self._address.server(*named))
        if before is not None:
            await before.aclose()  # who waits there for an answer would wait for a server that is master no more

    async def _named(self) -> tuple[str, int] | None:
        """Return where the master is, or None where no sentinel answers; those that do not are asked last next time."""
        for _ in range(len(self._sentinels)):
            try:
                async with asyncio.timeout(self._each_s):
                    found = await self._sentinels[0].execute_command(  # type: ignore[no-untyped-call]
                        "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service
                    )
            except _NOT_REACHED:
                self._sentinels.rotate(-1)
                continue
            if not found:
                raise ConfigError(
                    f"the sentinels watch over no master named {self._address.service}",
                    todo="mend the name in the address",
                )
            return found[0].decode(), int(found[1])
        return None


@dataclass(frozen=True)
class _Slots:
    """Who holds which hash slots: ranges by their first slot, and the node of each."""

    firsts: tuple[int, ...]
    lasts: tuple[int, ...]
    nodes: tuple[str, ...]

    def node(self, slot: int) -> str | None:
        """Return the node that holds a slot."""
        at = bisect_right(self.firsts, slot) - 1
        return self.nodes[at] if at >= 0 and slot <= self.lasts[at] else None


class Cluster:
    """The node that holds a key, after the table that the nodes themselves give."""

    def __init__(self, address: Address, connect: Connect, limit_s: float) -> None:
        self._address, self._connect, self._limit_s = address, connect, limit_s
        self._clients: dict[str, Redis] = {url: connect(url) for url in address.urls}
        self._asks = deque(address.urls)
        self._slots = _Slots((), (), ())
        self._stale = True
        self._asking = asyncio.Lock()

    async def client(self, key: bytes | None) -> Redis:
        """Return the node that holds a key, or any where there is none."""
        await self._known()
        if key is None:
            return self._clients[self._slots.nodes[0]]
        node = self._slots.node(key_slot(key))
        if node is None:
            self._stale = True
            raise NoConnection(f"no node holds the hash slot {key_slot(key)}")
        return self._clients[node]

    async def clients(self) -> list[Redis]:
        """Return every master."""
        await self._known()
        return [self._clients[node] for node in dict.fromkeys(self._slots.nodes)]

    def moved(self, error: MovedError) -> None:
        """Ask for the table anew, first the node that the key has moved to."""
        self._stale = True
        self._ask_first([self._address.server(error.host, error.port)])

    def lost(self, client: Redis) -> None:
        """Ask for the table anew, and this node last."""
        self._stale = True
        for url in [url for url, known in self._clients.items() if known is client and url in self._asks]:
            self._asks.remove(url)
            self._asks.append(url)

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.aclose()

    async def _known(self) -> None:
        if self._stale:
            async with self._asking:
                if self._stale:
                    await self._look()

    async def _look(self) -> None:
        for url in list(self._asks):
            client = self._node(url)
            try:
                async with asyncio.timeout(self._limit_s / (len(self._asks) + 1)):
                    ranges = await client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except _NOT_REACHED as error:
                if "cluster support disabled" in str(error):
                    raise ConfigError(
                        "this Redis is no cluster", todo="write redis:// in place of redis+cluster://"
                    ) from error
                self._asks.rotate(-1)
                continue
            if ranges:
                self._take(url, cast("list[list[object]]", ranges))
                return
        raise NoConnection("no node of the cluster answers")

    def _take(self, asked: str, ranges: list[list[object]]) -> None:
        host = asked.rpartition("@")[2].rpartition("://")[2].partition("/")[0].rpartition(":")[0].strip("[]")

        def url(node: object) -> str:
            name, port = cast("list[bytes | int | None]", node)[:2]
            return self._address.server(name.decode() if isinstance(name, bytes) and name else host, int(port or 0))

        rows = sorted((cast("int", row[0]), cast("int", row[1]), url(row[2])) for row in ranges)
        self._slots = _Slots(*(tuple(column) for column in zip(*rows, strict=True)))
        for node in self._slots.nodes:
            self._node(node)
        self._ask_first(dict.fromkeys(url(node) for row in ranges for node in row[2:]))
        self._stale = False

    def _node(self, url: str) -> Redis:
        if url not in self._clients:
            self._clients[url] = self._connect(url)
        return self._clients[url]

    def _ask_first(self, urls: Iterable[str]) -> None:
        known = list(urls)
        self._asks = deque([*known, *(url for url in self._asks if url not in known)])
