"""Keys of the HTTP service: made, checked, rotated and revoked."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from esper.errors import ConfigError, NotFound
from esper.ports import Clock
from esper.runtime.clock import SystemClock
from esper.services.rest.caller import Caller, Right
from esper.services.urza.access import ApiKeyRow
from esper.services.urza.database import Database

SCOPES = ("read", "write", "admin")
_TOKEN = re.compile(r"esper_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_SECRET_BYTES = 32
_NOBODY = "sha256:" + "0" * 64
_USE_NOTED_EVERY = timedelta(minutes=10)


@dataclass(frozen=True)
class KeyInfo:
    """What may be told of a key; its secret is not in it.

    Attributes:
        key_id: Its public part.
        name: What it is for.
        scopes: What it allows.
        created_at: When it was made.
        expires_at: When it ends, or None.
        revoked_at: When it was revoked, or None.
        last_used_at: When it was last used, to ten minutes, or None.
    """

    key_id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_valid(self, at: datetime) -> bool:
        """Whether it opens anything at a moment."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


class ApiKeys:
    """Keys with 256 random bits, of which the database keeps the digest only.

    A secret of that length cannot be guessed from its digest, so that a slow hash would only slow the service down.

    Args:
        database: Where they are kept.
        clock: Tells when they end.
    """

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._database, self._clock = database, clock or SystemClock()

    async def create(
        self, name: str, scopes: Iterable[str], *, lifetime: timedelta | None = None
    ) -> tuple[str, KeyInfo]:
        """Make a key.

        Args:
            name: What it is for.
            scopes: ``read``, ``write``, ``admin``; each includes those before it.
            lifetime: How long it is valid; None sets no end.

        Returns:
            The key itself, which nobody can be told again, and what may be known of it.

        Raises:
            ConfigError: If there is no such scope, or the name is empty or too long.
        """
        wanted = _checked(name, scopes)

        async def created(session: AsyncSession) -> tuple[str, KeyInfo]:
            return await _added(session, name, wanted, lifetime, made=self.now())

        return await self._database.transact(created)

    async def holder(self, token: str) -> Caller | None:
        """Return who sent a key, as every service knows callers."""
        info = await self.check(token)
        return None if info is None else Caller(info.key_id, frozenset(map(Right, info.scopes)))

    async def check(self, token: str) -> KeyInfo | None:
        """Return the valid key that a caller sent, or None; a wrong one takes as long as a right one."""
        match = _TOKEN.fullmatch(token)
        key_id, secret = (match[1], match[2]) if match else ("", token[:64])
        async with self._database.reading() as session:
            row = await session.get(ApiKeyRow, key_id)
        expected = _NOBODY if row is None else row.key_hash
        if not hmac.compare_digest(expected.encode(), _digest(secret).encode()) or row is None:
            return None
        info, moment = _info(row), self.now()
        if not info.is_valid(moment):
            return None
        if row.last_used_at is None or moment - row.last_used_at > _USE_NOTED_EVERY:
            await self._database.transact(lambda session: _used(session, key_id, moment))
        return info

    async def rotate(self, key_id: str, *, overlap: timedelta) -> tuple[str, KeyInfo]:
        """Make a key in place of another, which stays valid for a while, so that callers can change over.

        Args:
            key_id: The old one.
            overlap: How long it stays valid; 0 ends it at once.

        Raises:
            NotFound: If there is no such key.
            ConfigError: If it is not valid any more.
        """

        async def rotated(session: AsyncSession) -> tuple[str, KeyInfo]:
            old = await _known(session, key_id)
            if not _info(old).is_valid(self.now()):
                raise ConfigError(f"key {key_id} is not valid any more", todo="make a new one: esper keys create")
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            made = await _added(
                session, old.name, tuple(old.scopes.split(",")), lifetime, made=self.now(), rotated_from=old.id
            )
            ends = self.now() + overlap
            old.expires_at = ends if old.expires_at is None else min(ends, old.expires_at)
            return made

        return await self._database.transact(rotated)

    async def revoke(self, key_id: str) -> KeyInfo:
        """End a key at once.

        Raises:
            NotFound: If there is no such key.
        """

        async def revoked(session: AsyncSession) -> KeyInfo:
            row = await _known(session, key_id)
            row.revoked_at = row.revoked_at or self.now()
            return _info(row)

        return await self._database.transact(revoked)

    def now(self) -> datetime:
        """Return this moment, in UTC, as the clock has it."""
        return datetime.fromtimestamp(self._clock.now_s(), UTC)

    async def every(self) -> list[KeyInfo]:
        """Return all keys, the oldest first."""
        async with self._database.reading() as session:
            rows = await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            return [_info(row) for row in rows]


def _checked(name: str, scopes: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(scope for scope in SCOPES if scope in set(scopes))
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not wanted:
        raise ConfigError(
            "a key cannot have these scopes", why=", ".join(unknown) or "there are none", todo=f"of {', '.join(SCOPES)}"
        )
    if not 1 <= len(name) <= 128:
        raise ConfigError("a key cannot be named so", why="1 to 128 characters")
    return wanted


async def _added(
    session: AsyncSession,
    name: str,
    scopes: tuple[str, ...],
    lifetime: timedelta | None,
    *,
    made: datetime,
    rotated_from: str | None = None,
) -> tuple[str, KeyInfo]:
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    row = ApiKeyRow(
        id=secrets.token_hex(8),
        name=name,
        key_hash=_digest(secret),
        scopes=",".join(scopes),
        created_at=made,
        expires_at=None if lifetime is None else made + lifetime,
        rotated_from=rotated_from,
    )
    session.add(row)
    await session.flush()
    return f"esper_{row.id}_{secret}", _info(row)


async def _known(session: AsyncSession, key_id: str) -> ApiKeyRow:
    row = await session.get(ApiKeyRow, key_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no key {key_id[:64]}", todo="esper keys list")
    return row


async def _used(session: AsyncSession, key_id: str, moment: datetime) -> None:
    row = await session.get(ApiKeyRow, key_id)
    if row is not None:
        row.last_used_at = moment


def _info(row: ApiKeyRow) -> KeyInfo:
    return KeyInfo(
        row.id, row.name, tuple(row.scopes.split(",")), row.created_at, row.expires_at, row.revoked_at, row.last_used_at
    )


def _digest(secret: str) -> str:
    return f"sha256:{hashlib.sha256(secret.encode('utf-8', 'replace')).hexdigest()}"
