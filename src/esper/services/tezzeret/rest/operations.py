"""Endpoints for whoever runs the forge."""

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from esper import __version__
from esper.contracts.store import KernelQuery
from esper.errors import ForgeUnavailable
from esper.services.rest.answers import json_answer
from esper.services.rest.bodies import LimitedRoute
from esper.services.tezzeret.rest.state import Forging, forging_of

operations = APIRouter(tags=["operations"], route_class=LimitedRoute)

READY_LIMIT_S = 2.0


class Health(BaseModel):
    """Whether the process does its work."""

    status: str = "ok"


class ForgeStatus(BaseModel):
    """How the forge is.

    Attributes:
        workers: Builds at a time.
        in_hand: Jobs that it holds.
        endings: How many jobs ended in which way.
        outages: How often store, bus or a child did not answer.
        children: Children that were started.
        isolated: Whether children are cut off from every network; null before there is one.
        confined: Whether they can write nowhere but in a scratch folder; null before there is one.
        backend: What level 3 makes inference forms with.
        highest_level: What it builds at most.
        key_id: The key that it signs with.
    """

    version: str
    draining: bool
    workers: int
    in_hand: int
    endings: dict[str, int]
    outages: int
    children: int
    isolated: bool | None
    confined: bool | None
    backend: str
    highest_level: str
    key_id: str


@operations.get("/health", response_model=Health)
async def health(request: Request) -> Response:
    """Say that the process answers, and works on jobs."""
    _check_working(forging_of(request))
    return json_answer(Health())


@operations.get("/ready", response_model=Health)
async def ready(request: Request) -> Response:
    """Say whether jobs are taken: the store answers, and the forge is not about to stop."""
    forging = forging_of(request)
    _check_working(forging)
    if forging.draining:
        raise ForgeUnavailable("the forge is not ready", why="it is about to stop", todo="ask another one")
    try:
        async with asyncio.timeout(READY_LIMIT_S):
            await forging.store.search(KernelQuery(limit=1))
    except TimeoutError as error:
        raise ForgeUnavailable("the forge is not ready", why="the store is slow") from error
    return json_answer(Health(status="ready"))


@operations.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Return what is counted, as Prometheus reads it."""
    body = await asyncio.to_thread(generate_latest, forging_of(request).metrics.registry)
    return Response(body, 200, {"Cache-Control": "no-store", "Content-Type": CONTENT_TYPE_LATEST})


@operations.get("/status", response_model=ForgeStatus)
async def status(request: Request) -> Response:
    """Return how the forge is."""
    forging = forging_of(request)
    worker = forging.worker
    return json_answer(
        ForgeStatus(
            version=__version__,
            draining=forging.draining,
            workers=forging.config.num_workers,
            in_hand=worker.in_hand,
            endings={ending.value: count for ending, count in sorted(worker.endings.items())},
            outages=worker.outages,
            children=worker.pool.started,
            isolated=worker.pool.isolated,
            confined=worker.pool.confined,
            backend=forging.config.backend,
            highest_level=worker.highest_level,
            key_id=forging.key_id,
        )
    )


def _check_working(forging: Forging) -> None:
    if forging.working.done():
        raise ForgeUnavailable("the forge has stopped working", why="the reason is in its log", todo="start it again")
