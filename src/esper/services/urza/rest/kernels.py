"""Endpoints about kernels and their bytes."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from esper.contracts.kernel import CompiledKernelContract, KernelForm, ValidationResult
from esper.contracts.store import KernelQuery, KernelRecord, LineageEntry, OutcomeStatistics
from esper.contracts.store_calls import MAX_LINK_S, ArtifactHead, KernelStatusChange, KernelSummary, Link
from esper.errors import ContractError, NotFound
from esper.services.rest.answers import IMMUTABLE, json_answer, json_list, matches, next_page
from esper.services.rest.bodies import LimitedRoute
from esper.services.rest.direct import DirectRoute
from esper.services.urza.rest.parameters import Digest
from esper.services.urza.rest.ranges import range_of
from esper.services.urza.rest.state import Serving, serving_of
from esper.services.urza.rest.summaries import encoded
from esper.services.urza.rest.transfers import sent, streamed

_REMEMBERED = 100_000

kernels = APIRouter(prefix="/api/v1/kernels", tags=["kernels"], route_class=LimitedRoute)

BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}},
    206: {"description": "a range of the bytes"},
}


async def search_kernels(request: Request, query: Annotated[KernelQuery, Query()]) -> Response:
    """Search kernels, fastest first; those that were not measured come last, with `performance` null."""
    rows, cursor = await serving_of(request).manager.search_rows(query)
    return Response(encoded(rows), 200, next_page(request, cursor), "application/json")


kernels.add_api_route("/search", search_kernels, response_model=list[KernelSummary], route_class_override=DirectRoute)


@kernels.get("", response_model=list[KernelRecord])
async def list_kernels(request: Request, query: Annotated[KernelQuery, Query()]) -> Response:
    """List kernels as `search` does, with all that is known of them."""
    page = await serving_of(request).manager.search(query)
    return json_list(page.kernels, next_page(request, page.cursor))


@kernels.post("", response_model=CompiledKernelContract)
async def register_kernel(request: Request, body: ArtifactHead) -> Response:
    """Store a kernel whose bytes were uploaded before; it waits for its report, and one that is there is left as it is."""
    return json_answer(await serving_of(request).manager.register_uploaded(body.artifact()))


@kernels.get("/{kernel_id}", response_model=KernelRecord)
async def get_kernel(request: Request, kernel_id: Digest) -> Response:
    """Return a kernel's record, whatever its status."""
    return json_answer(await serving_of(request).manager.get_kernel(kernel_id), request)


@kernels.get("/{kernel_id}/bytes", response_class=Response, responses=BYTES)
async def get_kernel_bytes(request: Request, kernel_id: Digest) -> Response:
    """Return the bytes of a validated kernel, or a range of them; they never change.

    Who reads a part, or a whole that is long, checks the digest themselves: it is the address.
    """
    serving = serving_of(request)
    size = await size_of_validated(serving, kernel_id)
    headers = {"ETag": f'"{kernel_id}"', "Cache-Control": IMMUTABLE, "Accept-Ranges": "bytes"}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return await sent(serving, kernel_id, size, range_of(request, headers["ETag"]), headers)


@kernels.get("/{kernel_id}/link", response_model=Link)
async def get_link(
    request: Request,
    kernel_id: Digest,
    expires_s: Annotated[float, Query(gt=0, le=MAX_LINK_S, allow_inf_nan=False)] = 300.0,
) -> Response:
    """Return an address from which anybody may read a validated kernel for a while, or null where the store has no such."""
    url = await serving_of(request).manager.link(kernel_id, expires_s=expires_s)
    return json_answer(Link(url=url), headers={"Cache-Control": "no-store"})


@kernels.get("/{kernel_id}/report", response_model=ValidationResult)
async def get_report(request: Request, kernel_id: Digest) -> Response:
    """Return what the validator found about a kernel."""
    return json_answer(await serving_of(request).manager.get_report(kernel_id))


@kernels.put("/{kernel_id}/report", response_model=CompiledKernelContract)
async def put_report(request: Request, kernel_id: Digest, body: ValidationResult) -> Response:
    """Store what the validator found about a kernel that waits for it; it is then validated or rejected."""
    if body.kernel_id != kernel_id:
        raise ContractError("the report is about another kernel", why=body.kernel_id[:80], todo="put it there")
    return json_answer(await serving_of(request).manager.store_report(body))


@kernels.get("/{kernel_id}/forms", response_model=list[KernelForm])
async def get_forms(request: Request, kernel_id: Digest) -> Response:
    """Return what levels added to a kernel, the lowest level first; each with the seal that its bytes are loaded with."""
    return json_list(await serving_of(request).manager.forms(kernel_id))


@kernels.get("/{kernel_id}/forms/{digest}", response_class=Response, responses={200: BYTES[200]})
async def get_form_bytes(request: Request, kernel_id: Digest, digest: Digest) -> Response:
    """Return the bytes of a form; they never change, and may carry code: whoever loads them verifies the seal."""
    manager = serving_of(request).manager
    headers = {"ETag": f'"{digest}"', "Cache-Control": IMMUTABLE}
    size = await manager.form_size(kernel_id, digest)
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(size)
    return await streamed(await manager.stream_form(kernel_id, digest), 200, headers)


@kernels.get("/{kernel_id}/lineage", response_model=list[LineageEntry])
async def get_kernel_lineage(request: Request, kernel_id: Digest) -> Response:
    """Return the blueprints from which a kernel descends: its own first, the origin last."""
    line = await serving_of(request).manager.get_kernel_lineage(kernel_id)
    if not line:
        raise NotFound(f"there is no kernel {kernel_id}", todo="submit its blueprint")
    return json_list(line)


@kernels.get("/{kernel_id}/statistics", response_model=OutcomeStatistics)
async def get_kernel_statistics(request: Request, kernel_id: Digest) -> Response:
    """Return what grafts of a kernel brought."""
    return json_answer(await serving_of(request).manager.kernel_statistics(kernel_id))


@kernels.put("/{kernel_id}/status", response_model=KernelRecord)
async def set_kernel_status(request: Request, kernel_id: Digest, body: KernelStatusChange) -> Response:
    """Give a kernel another status; what is not validated is handed out no more."""
    serving = serving_of(request)
    record = await serving.manager.set_kernel_status(kernel_id, body.status)
    serving.validated.pop(kernel_id, None)
    return json_answer(record)


async def size_of_validated(serving: Serving, kernel_id: str) -> int:
    """Return the size of a kernel that is validated; what was found is believed for `status_age_s`.

    Raises:
        NotFound: If there is none.
        KernelRejected: If it is not validated.
    """
    now = serving.clock.monotonic_s()
    since, size = serving.validated.get(kernel_id, (float("-inf"), 0))
    if now - since < serving.config.status_age_s:
        return size
    serving.validated.pop(kernel_id, None)
    size = await serving.manager.readable_size(kernel_id)
    if len(serving.validated) > _REMEMBERED:
        serving.validated.clear()
    serving.validated[kernel_id] = now, size
    return size
