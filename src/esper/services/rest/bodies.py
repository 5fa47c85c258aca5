"""Bodies of requests, read within limits."""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from esper.contracts.problems import IDEMPOTENCY_KEY
from esper.errors import ContractError
from esper.services.rest.answers import Refusal
from esper.services.rest.state import parts_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_OPENING, _CLOSING = b"[{", b"]}"


class LimitedRequest(Request):
    """A request whose JSON has a bounded depth, no numbers that JSON has not, and no name twice in one object."""

    async def json(self) -> Any:
        """Return the body, parsed.

        Raises:
            Refusal: If it is no such JSON.
        """
        if not hasattr(self, "_json"):
            self._json = parsed(await self.body(), max_depth=parts_of(self).config.max_depth)
        return self._json


class LimitedRoute(APIRoute):
    """Reads bodies within limits, and answers an idempotency key as the first time."""

    def get_route_handler(self) -> Handler:
        """Return what answers a request."""
        answer = super().get_route_handler()

        async def limited(request: Request) -> Response:
            request = LimitedRequest(request.scope, request.receive)
            known = parts_of(request).idempotency
            if known is None or request.method != "POST" or IDEMPOTENCY_KEY not in request.headers:
                return await answer(request)
            return await known.answered(request, lambda: answer(request))

        return limited


def parsed(body: bytes, *, max_depth: int) -> Any:
    """Parse JSON strictly.

    Raises:
        Refusal: If it is nested too deeply, or is no JSON.
    """
    if depth_of(body) > max_depth:
        raise Refusal(
            ContractError("the body is nested too deeply", why=f"{max_depth} levels are allowed", code="ESP-3410")
        )
    try:
        value = json.loads(body, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(ContractError("the body is no JSON", why=str(error)[:200], code="ESP-3414")) from error
    return value


def depth_of(body: bytes) -> int:
    """Return how deep the brackets of a JSON text are nested; those within strings do not count."""
    deepest = depth = 0
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    for part in outside:
        opened = part.count(b"[") + part.count(b"{")
        if not opened and not (part.count(b"]") + part.count(b"}")):
            continue
        for byte in part:
            if byte in _OPENING:
                depth += 1
                deepest = max(deepest, depth)
            elif byte in _CLOSING:
                depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that stands twice: two readers would take different ones for the value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _finite(text: str) -> float:
    """Refuse numbers that JSON has not, and those that are too large for a number of 64 bits."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number
