"""The gate: what every request passes before anything is done for it."""

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esper.errors import ContractError, EsperError, Unavailable
from esper.services.rest.answers import REQUEST_ID, Refusal, problem
from esper.services.rest.caller import CALLER, Caller, Right
from esper.services.rest.callers import OPEN_PATHS
from esper.services.rest.config import RestConfig
from esper.services.rest.metrics import OUTSIDE
from esper.services.rest.state import Parts, parts_in
from esper.telemetry.logs import get_logger
from esper.telemetry.tracing import traced, usable

if TYPE_CHECKING:
    from fastapi import FastAPI

READING = frozenset({"GET", "HEAD"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_log = get_logger("rest")


@dataclass(frozen=True)
class Rules:
    """What a service asks of its gate beside what every service does.

    Attributes:
        admin_paths: Paths that take the scope ``admin``.
        long_paths: Paths to which long bodies may be put, piece by piece.
        max_long_bytes: Longest of those.
        stall_limit_s: How long the sender of one may stand still.
        within: What a request is answered within, such as a note of who writes.
    """

    admin_paths: re.Pattern[str] | None = None
    long_paths: re.Pattern[str] | None = None
    max_long_bytes: int = 0
    stall_limit_s: float = 20.0
    within: Callable[[Scope, Caller], AbstractContextManager[None]] = lambda _, __: nullcontext()


class Gate:
    """Asks who calls, whether they may, and how much they may send; counts, and gives every request an id.

    Args:
        app: What is behind the gate.
        service: The application, which holds the parts.
        rules: What it asks for, given its parts.
    """

    def __init__(self, app: ASGIApp, service: "FastAPI", rules: Callable[[Parts], Rules]) -> None:
        self._app, self._service, self._rules = app, service, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answering = _Answering(send, _request_id(headers))
        scope[REQUEST_ID] = answering.request_id
        try:
            serving = parts_in(self._service)
        except Unavailable as error:
            await problem(error, scope)(scope, receive, answering.send)
            return
        began = serving.clock.monotonic_s()
        serving.metrics.in_hand.inc()
        try:
            await self._pass(scope, headers, receive, answering, serving)
        finally:
            serving.metrics.in_hand.dec()
            _count(serving, scope, answering.status, serving.clock.monotonic_s() - began)

    async def _pass(
        self, scope: Scope, headers: Headers, receive: Receive, answering: "_Answering", serving: Parts
    ) -> None:
        try:
            scope[CALLER] = caller = await serving.callers.admitted(scope, headers)
            rules = self._rules(serving)
            _check_right(scope, caller, rules)
            limited = _Limited(receive, _body_limits(scope, headers, serving.config, rules))
        except EsperError as error:
            serving.metrics.refused.labels(error.code).inc()
            await problem(error, scope)(scope, receive, answering.send)
            return
        with traced(usable(headers.get("traceparent"))), rules.within(scope, caller):
            try:
                await self._app(scope, limited.receive, answering.send)
            except Exception as error:
                if answering.started:
                    raise
                _log.error("request_broken", path=scope["path"], request_id=answering.request_id, exc_info=error)
                await problem(_fault(), scope)(scope, receive, answering.send)


def _count(serving: Parts, scope: Scope, status: int, seconds: float) -> None:
    endpoint = getattr(scope.get("route"), "path", OUTSIDE)
    method = scope["method"] if endpoint != OUTSIDE else OUTSIDE
    serving.metrics.answered(endpoint, method, status, seconds)


class _Answering:
    """Sends an answer with its id, and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.status, self.request_id, self.started = 500, request_id, False
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            own = (b"x-request-id", self.request_id.encode())
            message["headers"] = [*message.get("headers", ()), own, *_SECURITY_HEADERS]
        await self._send(message)


class _Limited:
    """Hands a body on as long as it keeps its limits.

    Args:
        receive: Where it comes from.
        limits: Most bytes; seconds for the whole, or for each piece.
    """

    def __init__(self, receive: Receive, limits: tuple[int, float, bool]) -> None:
        self._receive = receive
        self._most_bytes, self._limit_s, self._each = limits
        self._bytes, self._whole = 0, False
        self._ends_at: float | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # waits for the caller to go away
        time = asyncio.get_running_loop().time
        if self._ends_at is None or self._each:
            self._ends_at = time() + self._limit_s
        try:
            async with asyncio.timeout(self._ends_at - time()):
                message = await self._receive()
        except TimeoutError as error:
            raise Refusal(
                ContractError(
                    "the body did not arrive in time", why=f"{self._limit_s:g} s are allowed", code="ESP-3411"
                )
            ) from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._bytes > self._most_bytes:
                raise Refusal(_too_large(self._most_bytes))
        return message


def _body_limits(scope: Scope, headers: Headers, config: RestConfig, rules: Rules) -> tuple[int, float, bool]:
    """Return what a body may be.

    Raises:
        ContractError: If its head says that it will be too large, or is packed: what it unpacks to has no bound.
    """
    is_long = scope["method"] == "PUT" and _is(rules.long_paths, scope)
    most = rules.max_long_bytes if is_long else config.max_body_bytes
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ContractError("the body is compressed", todo="send it as it is", code="ESP-3412")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise ContractError("the length of the body cannot be read", code="ESP-3414")
    if len(length) > 18 or int(length) > most:
        raise _too_large(most)
    return (most, rules.stall_limit_s, True) if is_long else (most, config.body_limit_s, False)


def _check_right(scope: Scope, caller: Caller, rules: Rules) -> None:
    """Refuse what the caller may not do: reading and writing by the method, and what only an administrator may by its path."""
    if scope["path"] in OPEN_PATHS:
        return
    reading = scope["method"] in READING
    caller.check(Right.ADMIN if _is(rules.admin_paths, scope) else Right.READ if reading else Right.WRITE)


def _is(paths: re.Pattern[str] | None, scope: Scope) -> bool:
    return paths is not None and paths.fullmatch(scope["path"]) is not None


def writes(scope: Scope) -> bool:
    """Say whether a request may change something."""
    return scope["method"] not in READING


def _too_large(most: int) -> ContractError:
    return ContractError("the body is too large", why=f"{most} bytes are allowed", code="ESP-3410")


def _fault() -> EsperError:
    return EsperError("the service has a fault", why="it is in its log, under the id of this request")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else token_hex(8)
