"""Endpoints whose only parameter is a model of their query, read without the framework's way, which takes as long as a search."""

import inspect
from functools import cache
from typing import Any, TypeVar, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from esper.services.urza.rest.bodies import Handler

Model = TypeVar("Model", bound=BaseModel)


class DirectRoute(APIRoute):
    """Calls ``endpoint(request, query)`` with the query read into its model; described as any other endpoint."""

    def get_route_handler(self) -> Handler:
        """Return what answers a request."""
        endpoint = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["query"]
        assert list(inspect.signature(endpoint).parameters) == ["request", "query"], endpoint

        async def direct(request: Request) -> Response:
            answer: Response = await endpoint(request, query_of(request, model))
            return answer

        return direct


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
