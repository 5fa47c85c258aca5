"""Commands to Redis, each with a deadline, and what went wrong in this library's own words."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as NoConnection

from esper.errors import BusUnavailable, ConfigError, Conflict, EsperError, NotFound, Unavailable
from esper.services.oona.redis_address import password_in, read_address
from esper.services.oona.redis_routes import route_to

Command: TypeAlias = Sequence[str | bytes | int]
T = TypeVar("T")

_PASSING = (ReadOnlyError, ClusterDownError, OutOfMemoryError, TryAgainError, AskError)
_PASSING_TEXTS = ("NOREPLICAS", "MISCONF", "BUSY ")
_MOVES = 4
"""How often one command follows a key that moves, within its deadline."""
_LONG_BYTES = 2_000
_KEY_AT = {"XGROUP": 2, "XINFO": 2, "EVAL": 3}
_KEYLESS = ("PING", "SCAN", "ECHO")
_KEY_AFTER_STREAMS = ("XREAD", "XREADGROUP")
_RAW = (
    *("XADD", "XRANGE", "XREVRANGE", "XREAD", "XREADGROUP", "XPENDING", "XCLAIM", "XAUTOCLAIM"),
    *("SCAN", "SET", "CLUSTER", "SENTINEL", "HGETALL"),
)
"""Commands whose answers redis-py would change."""


class GroupGone(NotFound):
    """The consumer group vanished: the server was flushed, or somebody destroyed it."""


class GroupThere(Conflict):
    """The consumer group exists already."""


class Link:
    """Connections whose every command has a deadline, and whose errors are those of this library.

    No socket timeout is set: redis-py on Python 3.11 may swallow a cancellation where one is. Nothing is retried here that may
    have been done, because only the caller knows what may be sent twice: a command is sent again only where a node of a
    cluster has refused it because another one holds its key.

    Args:
        url: Where Redis is: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``.
        limit_s: How long a command may take.
        password_file: File that holds the password; one in the address goes first.
        unavailable: Class of the error where Redis does not answer.

    Raises:
        ConfigError: If the address or the file cannot be read.
    """

    def __init__(
        self,
        url: str,
        limit_s: float,
        *,
        password_file: Path | None = None,
        unavailable: type[Unavailable] = BusUnavailable,
    ) -> None:
        self._limit_s, self._unavailable = limit_s, unavailable
        password = password_in(password_file) if password_file else None
        address = read_address(url)
        try:
            self._route = route_to(address, lambda at: _client(at, password), lambda at: _client(at, None), limit_s)
        except ValueError as error:
            raise ConfigError("the address of Redis cannot be used", why=str(error)) from error

    async def ask(self, *command: str | bytes | int, wait_s: float = 0.0) -> object:
        """Send one command and return the answer as it came.

        Args:
            *command: Its name and arguments.
            wait_s: How long the command itself waits, beyond the limit of every command.

        Raises:
            GroupGone: If the consumer group is not there.
            ConfigError: If this user may not do that, or the key holds something else.
            Unavailable: If Redis does not answer in time.
        """

        async def send(client: Redis) -> object:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

        return await self._sent(_key(command), send, wait_s)

    async def ask_all(self, commands: Sequence[Command], *, at_once: bool = False, wait_s: float = 0.0) -> list[object]:
        """Send commands in one journey, and where ``at_once`` is set, as one transaction; their keys share a hash slot."""

        async def send(client: Redis) -> list[object]:
            answers = await _piped(client, commands, at_once=at_once)
            for answer in answers:
                if isinstance(
                    answer, RedisError
                ):  # redis-py itself would hide what it says behind the number of the command
                    raise answer
            return answers

        return await self._sent(_key(commands[0]), send, wait_s)

    async def ask_each(self, commands: Callable[[str], Sequence[Command]]) -> list[list[object]]:
        """Send commands to every server that holds keys of its own; where one refuses a command, the answer is the error.

        Args:
            commands: Returns them, given a key that lies on the server.
        """
        keys: dict[Redis, str] = {}
        with self._translated(0.0):
            async with asyncio.timeout(self._limit_s):
                clients, tried = await self._route.clients(), (f"oona.probe.{n}" for n in itertools.count())
                while len(keys) < len(clients):
                    key = next(tried)
                    keys[await self._route.client(key.encode())] = key
        answers = [
            await self._sent(key.encode(), lambda client, key=key: _piped(client, commands(key)), 0.0)  # type: ignore[misc]
            for key in keys.values()
        ]
        return [[self._answered(a) if isinstance(a, ResponseError) else a for a in its] for its in answers]

    async def keys(self, kind: str) -> list[bytes]:
        """Return all keys of a kind, such as ``stream``, on whatever servers they are."""
        found: list[bytes] = []
        with self._translated(0.0):
            async with asyncio.timeout(self._limit_s):
                clients = await self._route.clients()
            for client in clients:
                cursor = None
                while cursor != b"0":
                    scan = ("SCAN", cursor or b"0", "COUNT", 500, "TYPE", kind)
                    async with asyncio.timeout(self._limit_s):
                        cursor, keys = await client.execute_command(*scan)  # type: ignore[no-untyped-call]
                    found += keys
        return found

    async def ping(self) -> None:
        """Return once every server that holds keys has answered."""
        with self._translated(0.0):
            async with asyncio.timeout(self._limit_s):
                for client in await self._route.clients():
                    try:
                        await client.execute_command("PING")  # type: ignore[no-untyped-call]
                    except BaseException:
                        self._route.lost(client)
                        raise

    async def close(self) -> None:
        """Close every connection."""
        await self._route.close()

    async def _sent(self, key: bytes | None, send: Callable[[Redis], Awaitable[T]], wait_s: float) -> T:
        with self._translated(wait_s):
            async with asyncio.timeout(self._limit_s + wait_s):
                for _ in range(_MOVES):
                    client = await self._route.client(key)
                    try:
                        return await send(client)
                    except MovedError as error:
                        self._route.moved(error)
                    except BaseException as error:
                        if not isinstance(error, ResponseError) or isinstance(error, _PASSING):
                            self._route.lost(client)
                        raise
                raise NoConnection("the key moves faster than it can be followed")

    @contextmanager
    def _translated(self, wait_s: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            limit_s = self._limit_s + wait_s
            raise self._unavailable("Redis does not answer", why=f"no answer within {limit_s:g} s") from error
        except AuthenticationError as error:
            raise ConfigError("Redis does not let this user in", why=str(error), todo="mend the url") from error
        except ResponseError as error:
            raise self._answered(error) from error
        except (NoConnection, RedisError, OSError) as error:
            raise self._unavailable("Redis does not answer", why=str(error) or type(error).__name__) from error

    def _answered(self, error: ResponseError) -> EsperError:
        text = str(error)
        if "NOGROUP" in text or text.startswith("UNBLOCKED"):  # the latter where the key vanishes under a waiting read
            return GroupGone("the consumer group is gone", why=text)
        if text.startswith("BUSYGROUP"):
            return GroupThere("the consumer group is there", why=text)
        if isinstance(error, _PASSING) or text.startswith(_PASSING_TEXTS):
            return self._unavailable("Redis cannot do that now", why=text)
        return ConfigError(
            "Redis refuses a command", why=text, todo="look at its key, its version and the user's rights"
        )


async def _piped(client: Redis, commands: Sequence[Command], *, at_once: bool = False) -> list[object]:
    """Send commands in one journey, and return what is answered to each, errors among it."""
    async with client.pipeline(transaction=at_once) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return cast("list[object]", await pipe.execute(raise_on_error=False))


def _client(url: str, password: str | None) -> Redis:
    client = Redis.from_url(
        url,
        password=password,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
    )
    pool = client.connection_pool
    pool.connection_class = type("Packing", (_Packing, pool.connection_class), {})
    for command in _RAW:
        client.set_response_callback(command, _as_it_is)  # type: ignore[arg-type]
    return client


class _Packing(AbstractConnection):
    """Packs commands in C; what redis-py does in Python costs more than all the rest of a publish, but copies no long value."""

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return a command as it is sent; bodies of messages, long where anything is, come last in it."""
        if isinstance(args[-1], bytes) and len(args[-1]) > _LONG_BYTES:
            return super().pack_command(*args)
        return [pack_command(args)]


def _key(command: Command) -> bytes | None:
    """Return the key that a command is about; there are few enough commands to know where it stands in each."""
    name = command[0]
    if name in _KEYLESS:
        return None
    key = command[list(command).index("STREAMS") + 1 if name in _KEY_AFTER_STREAMS else _KEY_AT.get(str(name), 1)]
    return key if isinstance(key, bytes) else str(key).encode()


def _as_it_is(answer: Any, **_: Any) -> Any:
    return answer
