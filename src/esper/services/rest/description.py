"""The OpenAPI document of the service."""

import inspect
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from esper.contracts.problems import IDEMPOTENCY_KEY, MEDIA_TYPE, Problem
from esper.services.rest.callers import OPEN_PATHS

_KEY_PARAMETER = {
    "name": IDEMPOTENCY_KEY,
    "in": "header",
    "required": False,
    "description": "The same key and body are answered as the first time, for a day.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
}


def described(app: FastAPI, about: str, *, idempotent: bool) -> dict[str, Any]:
    """Return the document: what FastAPI finds, with problems, keys and, where a service has them, idempotency added."""
    found = get_openapi(title=app.title, version="1", description=about, routes=app.routes)
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation, idempotent)
    return {key: _dedented(value) for key, value in found.items()}


def _complete(path: str, method: str, operation: dict[str, Any], idempotent: bool) -> None:
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = {
        "description": "A problem.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if path not in OPEN_PATHS:
        operation["security"] = [{"key": []}, {}]
    if method == "post" and idempotent:
        operation.setdefault("parameters", []).append(_KEY_PARAMETER)


def _dedented(part: object) -> object:
    """Return a part with docstrings as every release of Python gives them."""
    if isinstance(part, dict):
        plain = {key: _dedented(value) for key, value in part.items()}
        about = plain.get("description")
        return {**plain, "description": inspect.cleandoc(about)} if isinstance(about, str) else plain
    return [_dedented(value) for value in part] if isinstance(part, list) else part
