"""Endpoint for bytes that are uploaded before they belong to a kernel."""

from fastapi import APIRouter, Request, Response

from esper.contracts.store_calls import Stored
from esper.services.rest.answers import json_answer
from esper.services.rest.bodies import LimitedRoute
from esper.services.urza.rest.parameters import Digest
from esper.services.urza.rest.state import serving_of
from esper.services.urza.rest.transfers import BINARY, received

blobs = APIRouter(prefix="/api/v1/blobs", tags=["blobs"], route_class=LimitedRoute)

BODY = {"requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}}


@blobs.put("/{digest}", response_model=Stored, openapi_extra=BODY)
async def put_blob(request: Request, digest: Digest) -> Response:
    """Store bytes under their digest; they are swept away unless a kernel refers to them before long."""
    return json_answer(await received(request, serving_of(request), digest))
