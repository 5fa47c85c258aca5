"""Small named state in Redis, for parts that run on several machines."""

from pathlib import Path

from esper.errors import ContractError, StoreUnavailable
from esper.runtime.closing import Closing
from esper.services.oona.redis_link import Link

_LONGEST_KEY = 1024


class RedisState(Closing):
    """Keeps each value under a key of its own; implements `esper.ports.StateStore`.

    A value is as safe as Redis keeps it: without ``appendonly yes`` a killed server forgets the newest ones.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user, password and database where they are needed.
        prefix: What the keys begin with in Redis.
        limit_s: How long Redis may take to answer.
        password_file: File that holds the password, so that it need not stand in the address.

    Raises:
        ConfigError: If the address or the file cannot be read.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379",
        *,
        prefix: str = "esper:state:",
        limit_s: float = 2.0,
        password_file: Path | None = None,
    ) -> None:
        self._prefix = prefix
        self._link = Link(url, limit_s, password_file=password_file, unavailable=StoreUnavailable)

    async def put(self, key: str, value: bytes) -> None:
        """Store a value, whole or not at all.

        Raises:
            ContractError: If the key is empty or too long.
            StoreUnavailable: If Redis does not answer; the value may be stored nevertheless.
        """
        await self._link.ask("SET", self._key(key), value)

    async def get(self, key: str) -> bytes | None:
        """Return what was put last, or None.

        Raises:
            ContractError: If the key is empty or too long.
            StoreUnavailable: If Redis does not answer.
        """
        found = await self._link.ask("GET", self._key(key))
        return found if isinstance(found, bytes) else None

    async def close(self) -> None:
        """Close every connection."""
        await self._link.close()

    def _key(self, key: str) -> bytes:
        name = key.encode()
        if not 0 < len(name) <= _LONGEST_KEY:
            raise ContractError(f"bad state key {key[:80]!r}", why=f"it has {len(name)} of 1 to {_LONGEST_KEY} bytes")
        return self._prefix.encode() + name
