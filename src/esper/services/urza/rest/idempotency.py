"""Requests that may be sent again: a key is answered as the first time."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from esper.contracts.problems import IDEMPOTENCY_KEY, MEDIA_TYPE
from esper.errors import ContractError, EsperError
from esper.ir import digest_of
from esper.services.rest.answers import Refusal, Wait, problem
from esper.services.rest.caller import caller_of
from esper.services.urza.access import IdempotencyRow
from esper.services.urza.audit import done_by
from esper.services.urza.base import now
from esper.services.urza.database import Database

_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_LEASE = timedelta(seconds=60)
"""After so long a first request that gave no answer counts as lost, and its key as new."""
_POLL_S, _PATIENCE_S = 0.05, 5.0


class Idempotency:
    """Answers of requests by caller and key, in the database, so that every process of the service knows them.

    What was refused is kept like what was done; faults and outages are not, so that the same key can be tried again.
    A crash between the effect and the answer forgets the answer: the request is then done again, and the store's own laws hold
    (an equal submission is the same, a job that is done is a conflict).

    Args:
        database: Where they are kept, until garbage collection forgets them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def answered(self, request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
        """Return the answer that the key got, or do the work and keep its answer.

        Raises:
            Refusal: If the key was used for another request, or cannot be one.
            Wait: If the first request is still at work.
        """
        given = request.headers[IDEMPOTENCY_KEY]
        if _KEY.fullmatch(given) is None:
            raise Refusal(
                ContractError("the idempotency key cannot be used", why="1 to 128 visible characters", code="ESP-3414")
            )
        key = f"{caller_of(request.scope).name}:{given}"
        asked = digest_of(f"{request.method} {request.url.path}?{request.url.query}\n".encode() + await request.body())
        with done_by(None):  # notes about a request are no deeds of its own
            found = await self._begun_or_known(key, asked)
        return found if found is not None else await self._done(key, request, work)

    async def _begun_or_known(self, key: str, asked: str) -> Response | None:
        for _ in range(int(_PATIENCE_S / _POLL_S)):
            row = await self._database.transact(lambda session: _begun(session, key, asked))
            if row is None:
                return None
            if row.request_hash != asked:
                raise Refusal(
                    ContractError(
                        "the idempotency key belongs to another request", todo="make a new one", code="ESP-3416"
                    )
                )
            if row.status is not None:
                kind = "application/json" if row.status < 300 else MEDIA_TYPE
                return Response(
                    row.body or b"", row.status, {"Idempotent-Replayed": "true"}, kind if row.body else None
                )
            await asyncio.sleep(_POLL_S)
        raise Wait("the first request with this key is still at work", retry_after_s=1.0)

    async def _done(self, key: str, request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
        try:
            answer = await work()
        except EsperError as error:
            answer = problem(error, request.scope)
        except BaseException:
            with done_by(None):
                await self._forget(key)
            raise
        with done_by(None):
            if answer.status_code >= 500 or answer.status_code == 429:
                await self._forget(key)
            else:
                await self._keep(key, answer.status_code, bytes(answer.body))
        return answer

    async def _keep(self, key: str, status: int, body: bytes) -> None:
        async def kept(session: AsyncSession) -> None:
            row = await session.get(IdempotencyRow, key)
            if row is not None:
                row.status, row.body = status, body

        await self._database.transact(kept)

    async def _forget(self, key: str) -> None:
        async def forgotten(session: AsyncSession) -> None:
            await session.execute(delete(IdempotencyRow).where(IdempotencyRow.key == key))

        await self._database.transact(forgotten)


async def _begun(session: AsyncSession, key: str, asked: str) -> IdempotencyRow | None:
    """Note that a request with the key is at work, and return None; or the note that there is already."""
    row = await session.scalar(select(IdempotencyRow).where(IdempotencyRow.key == key).with_for_update())
    if row is None:
        session.add(IdempotencyRow(key=key, request_hash=asked))
    elif row.status is None and row.created_at < now() - _LEASE:
        row.request_hash, row.created_at = asked, now()
    else:
        return row
    await session.flush()
    return None
