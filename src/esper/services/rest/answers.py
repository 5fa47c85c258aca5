"""Answers: JSON, problems, and what caches may keep."""

import hashlib
import math
from collections.abc import Sequence
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from esper.contracts.problems import MEDIA_TYPE, problem_of
from esper.errors import ContractError, EsperError, NotFound, StoreUnavailable, Unavailable
from esper.telemetry.logs import get_logger

IMMUTABLE = "private, max-age=31536000, immutable"
REVALIDATED = "private, no-cache"
REQUEST_ID = "esper.request_id"
_IN_A_QUERY = "%=&+:,;@!*'()/?$"
"""What may stand in a query as it is: RFC 3986, section 3.4."""

_log = get_logger("rest")


class Refusal(HTTPException):
    """An error of this library in a place where the framework lets only its own pass."""

    def __init__(self, error: EsperError) -> None:
        self.error = error
        super().__init__(400, str(error))


class Wait(Unavailable):
    """The caller shall ask again later.

    Args:
        what: What was not done.
        retry_after_s: After how long.
        why: The reason.
        code: Stable code.
    """

    def __init__(self, what: str, *, retry_after_s: float, why: str = "", code: str | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(what, why=why, todo="wait as long as Retry-After says", code=code)


def problem(error: EsperError, scope: Scope) -> Response:
    """Return the answer for an error."""
    told = problem_of(error, request_id=scope.get(REQUEST_ID))
    if isinstance(error, Wait):
        told = told.model_copy(update={"title": "Unavailable"})
    headers = {"Cache-Control": "no-store"}
    if told.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="esper"'
    if told.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(getattr(error, "retry_after_s", 1.0))))
    body = told.model_dump_json(exclude_none=True).encode()
    return Response(body, told.status, headers, MEDIA_TYPE)


async def on_esper_error(request: Request, error: Exception) -> Response:
    """Answer an error of this library; what is the server's own fault is logged."""
    if isinstance(error, Refusal):
        error = error.error
    assert isinstance(error, EsperError)
    if isinstance(error, Unavailable) and not isinstance(error, Wait):
        _log.warning("request_failed", path=request.url.path, why=str(error), request_id=request.scope.get(REQUEST_ID))
    return problem(error, request.scope)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses."""
    if isinstance(error, Refusal):
        return problem(error.error, request.scope)
    assert isinstance(error, HTTPException)
    answer = problem(_as_ours(error, request), request.scope)
    if error.headers and "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answer a body or a query that does not keep its contract; what was sent is not repeated, it may be long or secret."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:5])
    why = told.encode("utf-8", "replace").decode()[:1000]
    return problem(ContractError("the request cannot be used", why=why, todo="see /openapi.json"), request.scope)


def json_answer(
    value: BaseModel, request: Request | None = None, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return a record as JSON; with a request, a tag of its content, or nothing where the caller has it already."""
    body = value.model_dump_json().encode()
    return tagged(body, request, headers=headers) if request is not None else _json(body, status, headers)


def json_list(values: Sequence[BaseModel], headers: dict[str, str] | None = None) -> Response:
    """Return records as a JSON array."""
    body = b"[" + b",".join(value.model_dump_json().encode() for value in values) + b"]"
    return _json(body, 200, headers)


def tagged(body: bytes, request: Request, *, headers: dict[str, str] | None = None) -> Response:
    """Return a body that may change, with a tag of its content."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    more = {"ETag": tag, "Cache-Control": REVALIDATED, **(headers or {})}
    if matches(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=more)
    return _json(body, 200, more)


def matches(wanted: str | None, tag: str) -> bool:
    """Say whether an If-None-Match names a tag."""
    if wanted is None:
        return False
    return wanted.strip() == "*" or tag in [part.strip().removeprefix("W/") for part in wanted.split(",")]


def next_page(request: Request, cursor: str | None) -> dict[str, str]:
    """Return the header that leads to the next page, or none."""
    if cursor is None:
        return {}
    asked = request.scope["query_string"].decode("latin-1").split("&")
    query = "&".join([*(part for part in asked if part and not part.startswith("cursor=")), f"cursor={cursor}"])
    return {"Link": f'<{request.scope["path"]}?{quote(query, safe=_IN_A_QUERY)}>; rel="next"'}


def _as_ours(error: HTTPException, request: Request) -> EsperError:
    path = request.url.path[:200]
    if error.status_code == 404:
        return NotFound(f"there is nothing at {path}", todo="see /openapi.json")
    if error.status_code == 405:
        return ContractError(f"{path} has no method {request.method}", todo="see /openapi.json", code="ESP-3413")
    if error.status_code < 500:
        return ContractError("the request cannot be read", why=str(error.detail)[:200], code="ESP-3414")
    return StoreUnavailable("the request failed", why=str(error.detail)[:200])


def _json(body: bytes, status: int, headers: dict[str, str] | None) -> Response:
    return Response(body, status, headers, "application/json")
