"""Requests with deadlines, retries and a circuit breaker, and answers as typed errors."""

import asyncio
import io
import random
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self
from uuid import uuid4

import aiohttp
from pydantic import SecretStr, ValidationError
from yarl import URL

from esper.contracts.problems import IDEMPOTENCY_KEY, RETRIED, Problem, error_of
from esper.errors import CircuitOpen, ConfigError, DeadlineExceeded, EsperError, Unavailable
from esper.ports import Clock
from esper.runtime.clock import SystemClock
from esper.services.clients.circuit_breaker import CircuitBreaker
from esper.services.clients.messages import Refused, Reply, Request, TransportConfig, unexpected
from esper.telemetry.logs import get_logger
from esper.telemetry.tracing import traceparent

_OUTAGES = frozenset({500, 502, 503, 504})
_SAFE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_CHUNK_BYTES = 256 * 1024
# The system's own: the global generator belongs to the training that may run in this process.
_DICE = random.SystemRandom()
_log = get_logger("clients")


class Transport:
    """Calls one service.

    ```python
    async with Transport("http://localhost:8000") as service:
        reply = await service.call(Request("GET", "/health"))
    ```

    Args:
        base_url: ``http://`` or ``https://``, without user or password.
        key: API key; it is sent to this address only, and redirects are not followed.
        config: Limits.
        unavailable: Class of the error where the service does not answer.
        breaker: Shared with other clients of the same service, where there are some.
        clock: Measures the breaker.
        tls: Trust and certificates where the system's own do not do.

    Raises:
        ConfigError: If the address cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: SecretStr | None = None,
        config: TransportConfig | None = None,
        unavailable: type[Unavailable] = Unavailable,
        breaker: CircuitBreaker | None = None,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.config = config or TransportConfig()
        self.breaker = breaker or CircuitBreaker(
            self.config.failure_threshold, self.config.recovery_timeout_s, clock=clock or SystemClock()
        )
        self.retries = 0
        self._url = _base(base_url)
        self._key, self._unavailable, self._tls = key, unavailable, tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=self.config.connections, ssl=True if self._tls is None else self._tls, keepalive_timeout=30.0
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            raise_for_status=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, request: Request) -> Reply:
        """Make a call, again where that may help, and return the answer.

        A POST is sent with an idempotency key, and is repeated under it.

        Raises:
            CircuitOpen: If the breaker holds calls back.
            DeadlineExceeded: If no answer came in time.
            Unavailable: If the service cannot be reached or says so, after the last try.
            EsperError: What the service raised, as the class that it has there.
        """
        headers = dict(request.headers)
        if request.method == "POST" and not request.repeatable:
            headers.setdefault(IDEMPOTENCY_KEY, uuid4().hex)
        repeatable = request.method in _SAFE or request.repeatable or IDEMPOTENCY_KEY in headers
        try:
            async with asyncio.timeout(self.config.deadline_s):
                return await self._tried(request, headers, self.config.tries if repeatable else 1)
        except TimeoutError as error:
            raise self._late(request, self.config.deadline_s) from error
        except Refused as refused:
            raise refused.error from None

    @asynccontextmanager
    async def download(self, request: Request) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        """Open an answer whose body is read in pieces, with memory for one of them; it is tried once.

        Raises:
            CircuitOpen: If the breaker holds calls back.
            DeadlineExceeded: If the transfer stands still or takes too long.
            Unavailable: If the service cannot be reached, or the connection breaks.
            EsperError: What the service raised.
        """
        try:
            with self._watched(request):
                response = await self._sent(request, request.headers, self._transfer_limits())
        except Refused as refused:
            raise refused.error from None
        try:
            yield Reply(response.status, response.headers), self._pieces(request, response)
        finally:
            response.close()

    async def upload(self, request: Request, pieces: AsyncIterator[bytes]) -> Reply:
        """Send a body in pieces, with memory for one of them; it is tried once, because pieces come once.

        Raises:
            As `download`; and what ``pieces`` raises.
        """
        own: list[Exception] = []
        try:
            with self._watched(request):
                response = await self._sent(
                    request, request.headers, self._transfer_limits(), data=_noting(pieces, own)
                )
                try:
                    return Reply(response.status, response.headers, await self._body(response))
                finally:
                    response.release()
        except Refused as refused:
            raise refused.error from None
        except Unavailable:
            if own:
                raise own[0] from None
            raise

    # -- one try -----------------------------------------------------------------------------------------------------

    async def _tried(self, request: Request, headers: Mapping[str, str], tries: int) -> Reply:
        for number in range(1, tries + 1):
            try:
                with self._watched(request):
                    return await self._once(request, headers)
            except CircuitOpen:
                raise
            except Refused as refused:
                if number == tries or refused.status not in RETRIED:
                    raise
                await self._pause(request, refused.error, number, asked_s=refused.retry_after_s)
            except Unavailable as error:
                if number == tries:
                    raise
                await self._pause(request, error, number)
        raise AssertionError("unreachable")

    async def _once(self, request: Request, headers: Mapping[str, str]) -> Reply:
        limits = aiohttp.ClientTimeout(total=self.config.try_s)
        response = await self._sent(request, headers, limits, data=_payload(request.body))
        try:
            return Reply(response.status, response.headers, await self._body(response))
        finally:
            response.release()

    async def _sent(
        self,
        request: Request,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        *,
        data: bytes | io.BytesIO | AsyncIterator[bytes] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request and return the answer with its body unread; redirects are not followed, or the key would be too."""
        response = await self._opened().request(
            request.method,
            self._target(request),
            data=data,
            headers=self._headers(headers),
            timeout=limits,
            allow_redirects=False,
        )
        if response.status >= 300 and response.status != 304:
            try:
                raise await self._refusal(response)
            finally:
                response.release()
        return response

    async def _pause(self, request: Request, error: EsperError, number: int, *, asked_s: float = 0.0) -> None:
        """Wait before another try: a random time below a bound that doubles, or what the server asks for."""
        config = self.config
        bound = min(config.longest_wait_s, config.first_wait_s * 2 ** (number - 1))
        wait_s = max(min(asked_s, config.longest_wait_s), _DICE.uniform(0, bound))
        self.retries += 1
        _log.info("call_repeated", method=request.method, path=request.path, why=error.code, wait_s=round(wait_s, 3))
        await asyncio.sleep(wait_s)

    @contextmanager
    def _watched(self, request: Request) -> Iterator[None]:
        """Tell the breaker how one try goes, and turn what aiohttp raises into errors of this library."""
        ticket = self.breaker.admit()
        if ticket is None:
            raise CircuitOpen(
                f"{self._url.host} is not called",
                why=f"it did not answer {self.breaker.failure_threshold} times in a row",
                todo=f"the next call goes through in {self.breaker.retry_after_s():.0f} s",
            )
        try:
            yield
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self.breaker.record_failure(ticket)
            raise self._outage(request, error) from error
        except Refused as refused:
            record = self.breaker.record_failure if refused.status in _OUTAGES else self.breaker.record_success
            record(ticket)
            raise
        except Exception:
            self.breaker.record_success(ticket)
            raise
        except BaseException:
            self.breaker.withdraw(ticket)
            raise
        else:
            self.breaker.record_success(ticket)

    async def _pieces(self, request: Request, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield a body in pieces; what the caller does with them in between is no matter of the service."""
        pieces = response.content.iter_chunked(_CHUNK_BYTES)
        while True:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                self.breaker.record_failure()
                raise self._outage(request, error) from error
            yield piece

    # -- parts -------------------------------------------------------------------------------------------------------

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise ConfigError("the client is not open", todo="async with the client: ...", code="ESP-2560")
        return self._session

    def _target(self, request: Request) -> URL:
        pairs = [
            (name, value)
            for name, given in request.query.items()
            for value in ([given] if isinstance(given, str) else given)
        ]
        url = self._url.with_path(self._url.path.rstrip("/") + request.path, encoded=True)
        return url.with_query(pairs) if pairs else url

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"Accept": "application/json", **more}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        if (context := traceparent()) is not None:
            headers["traceparent"] = context
        return headers

    def _transfer_limits(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=self.config.transfer_s, sock_connect=self.config.try_s, sock_read=self.config.stall_s
        )

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """Read a body that must not be longer than is allowed; what it unpacks to counts."""
        pieces, length = [], 0
        async for piece in response.content.iter_any():
            length += len(piece)
            if length > self.config.most_bytes:
                response.close()
                raise unexpected(f"a body longer than {self.config.most_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def _refusal(self, response: aiohttp.ClientResponse) -> Refused:
        """Return the error that an answer stands for; what a proxy in between says is not taken for the service's word."""
        body = await self._body(response)
        try:
            error = error_of(Problem.model_validate_json(body))
        except ValidationError:
            problem = Problem(title="", status=response.status, what=f"{self._url.host} answered {response.status}")
            error = error_of(problem)
        if type(error) is Unavailable and response.status != 429:
            error = self._unavailable(error.what, why=error.why, todo=error.todo)
        asked_s = _seconds(response.headers.get("Retry-After"))
        return Refused(error, status=response.status, retry_after_s=asked_s)

    def _outage(self, request: Request, error: Exception) -> Unavailable:
        if isinstance(error, TimeoutError):
            return self._late(request, self.config.try_s)
        return self._unavailable(
            f"{self._url.host} does not answer",
            why=f"{type(error).__name__}: {error}",
            todo="look whether the service runs there",
        )

    def _late(self, request: Request, limit_s: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self._url.host} did not answer {request.method} {request.path}",
            why=f"nothing came within {limit_s:g} s",
            todo="try again, or allow more time",
        )


async def _noting(pieces: AsyncIterator[bytes], own: list[Exception]) -> AsyncIterator[bytes]:
    """Yield pieces, and keep what goes wrong with them: aiohttp takes it for a broken connection."""
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:
        own.append(error)
        raise


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """Return a body as aiohttp likes it: a long one is written in pieces."""
    return io.BytesIO(body) if body is not None and len(body) > _CHUNK_BYTES else body


def _base(address: str) -> URL:
    """Read the address of a service."""
    try:
        url = URL(address)
        sound = url.scheme in ("http", "https") and bool(url.host) and url.user is None and not url.query_string
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(
            "the address of the service cannot be used",
            why="it is not http:// or https:// with a host and nothing secret",
            todo="give something like http://localhost:8000, and the key apart",
            code="ESP-2561",
        )
    return url


def _seconds(text: str | None) -> float:
    """Read a Retry-After; a date is not worth a clock."""
    return float(text) if text is not None and text.isdecimal() else 0.0


__all__ = ["Transport"]
