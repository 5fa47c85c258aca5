"""Endpoint that runs kernels."""

from fastapi import APIRouter, Request, Response

from esper.contracts.kernel import KernelExecutionRequest, KernelExecutionResult
from esper.services.rest.answers import json_answer
from esper.services.rest.bodies import LimitedRoute
from esper.services.tezzeret.rest.state import forging_of

kernels = APIRouter(prefix="/api/v1/kernels", tags=["kernels"], route_class=LimitedRoute)


@kernels.post("/execute", response_model=KernelExecutionResult)
async def execute(request: Request, body: KernelExecutionRequest) -> Response:
    """Run a validated kernel on generated input, in a process of its own, and report shape, latency and memory.

    `execution_context` may choose a `backend` (`kernel`, or a form that the kernel has and whose seal holds) and a `seed`.
    """
    return json_answer(await forging_of(request).executor.execute(body))
