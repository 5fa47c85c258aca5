"""Endpoints for whoever runs the service."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from esper import __version__
from esper.contracts.store import MAX_PAGE, AuditRecord, Health, KernelQuery, Status
from esper.errors import StoreUnavailable
from esper.services.rest.answers import json_answer, json_list
from esper.services.rest.bodies import LimitedRoute
from esper.services.urza.audit import audit_log
from esper.services.urza.rest.state import serving_of

operations = APIRouter(tags=["operations"], route_class=LimitedRoute)

READY_LIMIT_S = 2.0


@operations.get("/health", response_model=Health)
async def health(request: Request) -> Response:
    """Say that the process answers."""
    return json_answer(Health())


@operations.get("/ready", response_model=Health)
async def ready(request: Request) -> Response:
    """Say whether requests can be served: the database answers, and the service is not about to stop."""
    serving = serving_of(request)
    if serving.draining:
        raise StoreUnavailable("the store is not ready", why="it is about to stop", todo="ask another one")
    try:
        async with asyncio.timeout(READY_LIMIT_S):
            await serving.manager.search(KernelQuery(limit=1))
    except TimeoutError as error:
        raise StoreUnavailable("the store is not ready", why="its database is slow") from error
    return json_answer(Health(status="ready"))


@operations.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Return what is counted, as Prometheus reads it."""
    body = await asyncio.to_thread(generate_latest, serving_of(request).metrics.registry)
    return Response(body, 200, {"Cache-Control": "no-store", "Content-Type": CONTENT_TYPE_LATEST})


@operations.get("/status", response_model=Status)
async def status(request: Request) -> Response:
    """Return how the service is."""
    serving = serving_of(request)
    return json_answer(
        Status(
            version=__version__,
            database="postgresql" if serving.config.database_url else "sqlite",
            draining=serving.draining,
            waiting=len(await serving.manager.outbox.waiting(1000)),
            cached_bytes=serving.immutable.size_bytes,
        )
    )


@operations.get("/api/v1/audit", response_model=list[AuditRecord])
async def audit(
    request: Request,
    subject: Annotated[str | None, Query(max_length=128)] = None,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
) -> Response:
    """Return who wrote what, the newest first."""
    return json_list(await audit_log(serving_of(request).manager.database, subject=subject, before=before, limit=limit))
