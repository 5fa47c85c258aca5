"""Endpoints for the forge: claim, renew, complete, finish, fail, release; and outcomes, which trainers report."""

from typing import Any

from fastapi import APIRouter, Request, Response

from esper.contracts.adaptation import Outcome
from esper.contracts.kernel import CompiledKernelContract, CompileJob
from esper.contracts.store_calls import Became, Claim, Completion, Failure, Finish, Held, Renewal, Review
from esper.services.rest.answers import json_answer
from esper.services.rest.bodies import LimitedRoute
from esper.services.urza.rest.parameters import JobId
from esper.services.urza.rest.state import serving_of

jobs = APIRouter(prefix="/api/v1", tags=["jobs"], route_class=LimitedRoute)

NOTHING: dict[int | str, dict[str, Any]] = {204: {"description": "done, or nothing to do"}}


@jobs.post("/jobs/claim", response_model=CompileJob, responses=NOTHING)
async def claim(request: Request, body: Claim) -> Response:
    """Take the most urgent job, or 204 where there is none."""
    job = await serving_of(request).manager.claim(body.worker, lease_s=body.lease_s, finishing=body.finishing)
    return Response(status_code=204) if job is None else json_answer(job)


@jobs.post("/jobs/review", response_model=CompileJob, responses=NOTHING)
async def review(request: Request, body: Review) -> Response:
    """Take the most used kernel that was not measured on some hardware, to prove it again, or 204 where there is none."""
    job = await serving_of(request).manager.review(body.worker, body.hardware, lease_s=body.lease_s)
    return Response(status_code=204) if job is None else json_answer(job)


@jobs.post("/jobs/{job_id}/renew", status_code=204)
async def renew(request: Request, job_id: JobId, body: Renewal) -> Response:
    """Keep a job that takes long."""
    await serving_of(request).manager.renew(job_id, body.worker, lease_s=body.lease_s)
    return Response(status_code=204)


@jobs.post("/jobs/{job_id}/complete", response_model=CompiledKernelContract)
async def complete(request: Request, job_id: JobId, body: Completion) -> Response:
    """Store the kernel, whose bytes were uploaded before, with its report, and end the job."""
    manager = serving_of(request).manager
    return json_answer(await manager.complete_uploaded(job_id, body.worker, body.artifact.artifact(), body.report))


@jobs.post("/jobs/{job_id}/finish", status_code=204)
async def finish(request: Request, job_id: JobId, body: Finish) -> Response:
    """Add to a kernel what its level adds, whose bytes were uploaded before, and end the job."""
    forms = [head.artifact() for head in body.forms]
    manager = serving_of(request).manager
    await manager.finish_uploaded(job_id, body.worker, forms, body.performance, body.shortfall, body.report)
    return Response(status_code=204)


@jobs.post("/jobs/{job_id}/fail", response_model=Became)
async def fail(request: Request, job_id: JobId, body: Failure) -> Response:
    """Give a job up, for another try or for good; the reason is stored."""
    manager = serving_of(request).manager
    status = await manager.fail(job_id, body.worker, body.reason, retry=body.retry, killed=body.killed)
    return json_answer(Became(status=status))


@jobs.post("/jobs/{job_id}/release", status_code=204)
async def release(request: Request, job_id: JobId, body: Held) -> Response:
    """Return a job untried, because the worker stops."""
    await serving_of(request).manager.release(job_id, body.worker)
    return Response(status_code=204)


@jobs.post("/outcomes", status_code=204)
async def report_outcome(request: Request, body: Outcome) -> Response:
    """Record what a graft brought; a decision has one record, with the verdict that came last."""
    await serving_of(request).manager.report(body)
    return Response(status_code=204)
