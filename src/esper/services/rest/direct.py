"""Endpoints that are asked most, reached without the framework's way to them, which takes longer than the answer."""

import inspect
import re
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, TypeVar, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from esper.errors import EsperError
from esper.ir import is_digest
from esper.services.rest.answers import on_esper_error, on_invalid
from esper.services.rest.bodies import Handler

Model = TypeVar("Model", bound=BaseModel)


class DirectRoute(APIRoute):
    """Calls ``endpoint(request, …)`` with a query read into its model, or an id of the path; described as any other endpoint."""

    def get_route_handler(self) -> Handler:
        """Return what answers a request."""
        endpoint = self.endpoint
        hints = get_type_hints(endpoint)
        readers = [_reader(name, hints[name]) for name in list(inspect.signature(endpoint).parameters)[1:]]

        async def direct(request: Request) -> Response:
            answer: Response = await endpoint(request, *[reader(request) for reader in readers])
            return answer

        return direct

    @cached_property
    def direct(self) -> Handler:
        """What answers a request that did not come through the framework."""
        return self.get_route_handler()


class DirectRoutes:
    """The direct routes of an application, found and answered without the framework.

    Args:
        service: The application.
    """

    def __init__(self, service: FastAPI) -> None:
        self._service = service

    def found(self, scope: Scope) -> bool:
        """Say whether a request is for one of them, and note which."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return False
        for path, route in self._routes:
            if (match := path.fullmatch(scope["path"])) is not None:
                scope.update(app=self._service, route=route, path_params=match.groupdict())
                return True
        return False

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that was found."""
        answer = await _answered(Request(scope, receive), scope["route"].direct)
        await answer(scope, receive, send)

    @cached_property
    def _routes(self) -> list[tuple[re.Pattern[str], "DirectRoute"]]:
        return [(route.path_regex, route) for route in self._service.routes if isinstance(route, DirectRoute)]


async def _answered(request: Request, answer: Handler) -> Response:
    try:
        return await answer(request)
    except RequestValidationError as error:
        return await on_invalid(request, error)
    except EsperError as error:
        return await on_esper_error(request, error)


def _reader(name: str, kind: Any) -> Callable[[Request], Any]:
    """Return what reads a parameter."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return lambda request: query_of(request, kind)
    return lambda request: _digest_of(request, name)


def _digest_of(request: Request, name: str) -> str:
    found: str = request.path_params[name]
    if not is_digest(found):
        raise RequestValidationError([{"loc": ("path", name), "msg": "it is no content address", "type": "digest"}])
    return found


def query_of(request: Request, model: type[Model]) -> Model:
    """Read a query; a name that is a list may stand several times, of another the last counts.

    Raises:
        RequestValidationError: If it does not keep the model.
    """
    found: dict[str, Any] = {}
    lists = _lists(model)
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name in lists:
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    try:
        return model.model_validate(found)
    except ValidationError as error:
        faults = [{**fault, "loc": ("query", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults) from error


@cache
def _lists(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a model that are lists."""
    return frozenset(name for name, field in model.model_fields.items() if get_origin(field.annotation) is list)
