"""Endpoints about blueprints."""

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from esper.contracts.kernel import (
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    CompiledKernelContract,
)
from esper.contracts.store import (
    MAX_DESCENDANTS,
    MAX_PAGE,
    BlueprintQuery,
    BlueprintRecord,
    LineageEntry,
    OutcomeStatistics,
)
from esper.contracts.store_calls import BlueprintPut, BlueprintStatusChange
from esper.errors import ContractError, NotFound
from esper.ir import BlueprintIR, digest_of
from esper.services.rest.answers import IMMUTABLE, json_answer, json_list, matches, next_page
from esper.services.rest.bodies import LimitedRoute
from esper.services.rest.direct import DirectRoute
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.parameters import Digest
from esper.services.urza.rest.state import serving_of

blueprints = APIRouter(prefix="/api/v1/blueprints", tags=["blueprints"], route_class=LimitedRoute)


class _Urgency(msgspec.Struct):
    """What the door asks of a submission."""

    priority: int = BlueprintSubmissionRequest.model_fields["priority"].default


_URGENCY = msgspec.json.Decoder(_Urgency)


def before_transaction(manager: KernelManager, request: Request, body: bytes) -> AbstractAsyncContextManager[None]:
    """Return what a request with an idempotency key passes first: a submission the store's door, another nothing."""
    if request.url.path != blueprints.prefix:
        return nullcontext()
    try:
        priority = _URGENCY.decode(body).priority
    except msgspec.DecodeError:  # it is refused when its turn has come
        priority = _Urgency().priority
    return manager.door.passed(max(1, min(priority, 10)))


@blueprints.post("", response_model=BlueprintSubmissionResponse)
async def submit_blueprint(request: Request, submission: BlueprintSubmissionRequest) -> Response:
    """Check and store a blueprint, and queue its build where nobody did."""
    return json_answer(await serving_of(request).manager.submit(submission))


@blueprints.get("", response_model=list[BlueprintRecord])
async def list_blueprints(request: Request, query: Annotated[BlueprintQuery, Query()]) -> Response:
    """List the blueprints that fit, by name and version."""
    page = await serving_of(request).manager.search_blueprints(query)
    return json_list(page.blueprints, next_page(request, page.cursor))


@blueprints.get("/{blueprint_id}", response_model=BlueprintRecord)
async def get_blueprint(request: Request, blueprint_id: Digest) -> Response:
    """Return a blueprint."""
    return json_answer(await serving_of(request).manager.get_blueprint(blueprint_id), request)


@blueprints.put("/{blueprint_id}", response_model=BlueprintRecord)
async def put_blueprint(request: Request, blueprint_id: Digest, body: BlueprintPut) -> Response:
    """Check and store a blueprint without queueing a build; its address is the digest of its canonical form."""
    found = BlueprintIR.from_json(body.blueprint.architecture_ir).digest
    if found != blueprint_id:
        raise ContractError("the blueprint has another address", why=f"its digest is {found}", todo="put it there")
    manager = serving_of(request).manager
    await manager.store_blueprint(body.blueprint, body.parent_id)
    return json_answer(await manager.get_blueprint(blueprint_id))


async def get_blueprint_ir(request: Request, blueprint_id: Digest) -> Response:
    """Return the canonical form of a blueprint, whose digest is its address; it never changes."""
    serving, key = serving_of(request), f"ir {blueprint_id}"
    headers = {"ETag": f'"{blueprint_id}"', "Cache-Control": IMMUTABLE}
    wanted = request.headers.get("if-none-match")
    if wanted != "*" and matches(wanted, headers["ETag"]):  # whoever names the digest has what it is the digest of
        return Response(status_code=304, headers=headers)
    body = serving.immutable.get(key)
    serving.metrics.cached.labels("yes" if body is not None else "no").inc()
    if body is None:
        body = canonical(blueprint_id, await serving.manager.get_blueprint(blueprint_id))
        serving.immutable.put(key, body)
    if wanted == "*":
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, "application/json")


blueprints.add_api_route(
    "/{blueprint_id}/ir",
    get_blueprint_ir,
    responses={200: {"content": {"application/json": {}}}},
    response_class=Response,
    route_class_override=DirectRoute,
)


@blueprints.get(
    "/{blueprint_id}/kernel", response_model=CompiledKernelContract, responses={204: {"description": "not built yet"}}
)
async def find_kernel(request: Request, blueprint_id: Digest, build: Annotated[BuildSpec, Query()]) -> Response:
    """Return the validated kernel of a blueprint and build; 204 while there is none, 422 where the forge refused it."""
    kernel = await serving_of(request).manager.find(blueprint_id, build)
    return Response(status_code=204) if kernel is None else json_answer(kernel)


@blueprints.post("/{blueprint_id}/withdraw", status_code=204)
async def withdraw_build(request: Request, blueprint_id: Digest, build: BuildSpec) -> Response:
    """End a build that waits or is at work; submitting it again starts over."""
    await serving_of(request).manager.withdraw(blueprint_id, build)
    return Response(status_code=204)


@blueprints.get("/{blueprint_id}/lineage", response_model=list[LineageEntry])
async def get_ancestors(request: Request, blueprint_id: Digest) -> Response:
    """Return the line from a blueprint to its origin."""
    line = await serving_of(request).manager.get_ancestors(blueprint_id)
    if not line:
        raise NotFound(f"there is no blueprint {blueprint_id}", todo="submit it")
    return json_list(line)


@blueprints.get("/{blueprint_id}/descendants", response_model=list[LineageEntry])
async def get_descendants(
    request: Request, blueprint_id: Digest, limit: Annotated[int, Query(ge=1, le=MAX_DESCENDANTS)] = MAX_PAGE
) -> Response:
    """Return what was made of a blueprint: itself first, the nearest next."""
    line = await serving_of(request).manager.get_descendants(blueprint_id, limit=limit)
    if not line:
        raise NotFound(f"there is no blueprint {blueprint_id}", todo="submit it")
    return json_list(line)


@blueprints.get("/{blueprint_id}/statistics", response_model=OutcomeStatistics)
async def get_blueprint_statistics(request: Request, blueprint_id: Digest) -> Response:
    """Return what grafts of all kernels of a blueprint brought."""
    return json_answer(await serving_of(request).manager.blueprint_statistics(blueprint_id))


@blueprints.put("/{blueprint_id}/status", response_model=BlueprintRecord)
async def set_blueprint_status(request: Request, blueprint_id: Digest, body: BlueprintStatusChange) -> Response:
    """Give a blueprint another status; only some may follow the present one."""
    return json_answer(await serving_of(request).manager.set_blueprint_status(blueprint_id, body.status))


def canonical(blueprint_id: str, record: BlueprintRecord) -> bytes:
    """Return the bytes whose digest is the address of a blueprint."""
    body = BlueprintIR.from_json(record.architecture_ir).canonical()
    assert digest_of(body) == blueprint_id
    return body
