"""Requests that may be sent again: a key is answered as the first time."""

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from esper.contracts.problems import IDEMPOTENCY_KEY, MEDIA_TYPE
from esper.errors import ContractError, EsperError
from esper.ir import digest_of
from esper.services.rest.answers import Refusal, problem
from esper.services.rest.caller import caller_of
from esper.services.urza.access import IdempotencyRow
from esper.services.urza.audit import deed_at_hand, done_by
from esper.services.urza.database import Database, lock

Work = Callable[[], Awaitable[Response]]
Before = Callable[[Request, bytes], AbstractAsyncContextManager[None]]

_KEY = re.compile(r"[\x21-\x7e]{1,128}")


class _NotKept(Exception):
    """An answer that undoes what was done, so that the same key can be tried again."""

    def __init__(self, answer: Response) -> None:
        self.answer = answer


class Idempotency:
    """Answers of requests by caller and key, in the database, so that every process of the service knows them.

    An answer is committed with what it tells of, or neither is: whenever the process dies, a request that is sent
    again is done once.
    What was refused is kept like what was done; faults and outages are not. Requests with one key wait for each other.

    Args:
        database: Where they are kept, until garbage collection forgets them.
        before: What a request with its body passes before the transaction begins.
    """

    def __init__(self, database: Database, before: Before) -> None:
        self._database, self._before = database, before

    async def answered(self, request: Request, work: Work) -> Response:
        """Return the answer that the key got, or do the work and keep its answer.

        Raises:
            Refusal: If the key was used for another request, or cannot be one.
        """
        given = request.headers[IDEMPOTENCY_KEY]
        if _KEY.fullmatch(given) is None:
            raise Refusal(
                ContractError("the idempotency key cannot be used", why="1 to 128 visible characters", code="ESP-3414")
            )
        key = f"{caller_of(request.scope).name}:{given}"
        body = await request.body()
        asked = digest_of(f"{request.method} {request.url.path}?{request.url.query}\n".encode() + body)
        deed = deed_at_hand()

        async def once(session: AsyncSession) -> Response:
            await session.run_sync(lock, f"key {key}")
            if (known := await session.get(IdempotencyRow, key)) is not None:
                return _again(known, asked)
            with done_by(deed), self._database.joined(session):
                answer = await _kept_answer(request, work)
            session.add(IdempotencyRow(key=key, request_hash=asked, status=answer.status_code, body=bytes(answer.body)))
            return answer

        with done_by(None):  # notes about a request are no deeds of its own
            try:
                async with self._before(request, body):
                    return await self._database.transact(once)
            except _NotKept as ended:
                return ended.answer


async def _kept_answer(request: Request, work: Work) -> Response:
    """Do the work, and return an answer that may be given again."""
    try:
        answer = await work()
    except EsperError as error:
        answer = problem(error, request.scope)
    if answer.status_code >= 500 or answer.status_code == 429:
        raise _NotKept(answer)
    return answer


def _again(known: IdempotencyRow, asked: str) -> Response:
    if known.request_hash != asked:
        raise Refusal(
            ContractError("the idempotency key belongs to another request", todo="make a new one", code="ESP-3416")
        )
    kind = "application/json" if known.status < 300 else MEDIA_TYPE
    return Response(known.body or b"", known.status, {"Idempotent-Replayed": "true"}, kind if known.body else None)
