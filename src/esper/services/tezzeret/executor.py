"""Runs kernels of the store for whoever asks, within caps, each in a child."""

from typing import Protocol

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esper.contracts.kernel import CERTIFICATE, KernelExecutionRequest, KernelExecutionResult, KernelForm
from esper.errors import ContractError, NotFound
from esper.ir import BlueprintIR, cost, is_digest
from esper.ir.types import Layout
from esper.services.tezzeret.orders import Execution
from esper.services.tezzeret.pool import ForgePool
from esper.signing.keys import KeyRing

MAX_ELEMENTS = 2**22
"""Numbers of an input: 16 MiB in float32."""
MAX_FLOPS = 2e11
"""Of one run: some ten seconds on one core."""
KERNEL = "kernel"
"""Backend that stands for the kernel as it is trained."""


class Kernels(Protocol):
    """Where kernels and their forms are read."""

    async def read(self, kernel_id: str) -> bytes:
        """Return the bytes of a validated kernel."""
        ...

    async def architecture_of(self, kernel_id: str) -> BlueprintIR:
        """Return the design of a kernel."""
        ...

    async def forms(self, kernel_id: str) -> list[KernelForm]:
        """Return what levels added to it."""
        ...

    async def read_form(self, kernel_id: str, digest: str) -> bytes:
        """Return the bytes of a form."""
        ...


class ExecutionContext(BaseModel):
    """What a caller may choose about a run.

    Attributes:
        backend: What is to run: ``kernel``, or a form that the kernel has.
        seed: Of the input.
    """

    model_config = ConfigDict(extra="forbid")

    backend: str = Field(default=KERNEL, max_length=32)
    seed: int = Field(default=0, ge=0, lt=2**63)


class Executor:
    """Runs kernels.

    Args:
        kernels: Where they are read.
        pool: Where they run.
        ring: Keys whose forms may run.
    """

    def __init__(self, kernels: Kernels, pool: ForgePool, ring: KeyRing) -> None:
        self._kernels, self._pool, self._ring = kernels, pool, ring

    async def execute(self, request: KernelExecutionRequest) -> KernelExecutionResult:
        """Run a kernel once and time it.

        Raises:
            ContractError: If the id is none, the shape does not fit the kernel, or the run would be too large.
            NotFound: If there is no such kernel, or it has no such form.
            KernelRejected: If the kernel is not validated.
            CompilationError: If kernel or form were refused, such as for a seal that does not hold.
            ChildDied: If the run killed its process.
            DeadlineExceeded: If it took too long.
        """
        if not is_digest(request.kernel_id):
            raise ContractError(
                "there can be no such kernel",
                why=f"{request.kernel_id[:80]!r} is no content address",
                todo="send sha256: and 64 hex digits",
            )
        context = _context(request)
        shape = tuple(request.input_tensor_shape)
        check_run(await self._kernels.architecture_of(request.kernel_id), shape)
        order = Execution(
            kernel_id=request.kernel_id,
            kernel=await self._kernels.read(request.kernel_id),
            shape=shape,
            seed=context.seed,
            ring=msgspec.json.encode(self._ring.keys),
        )
        if context.backend != KERNEL:
            order = await self._with_form(order, context.backend)
        done = await self._pool.execute(order)
        return KernelExecutionResult(
            kernel_id=request.kernel_id,
            backend=context.backend,
            output_tensor_shape=list(done.shape),
            latency_ms=done.latency_ms,
            runs=done.runs,
            memory_mb=done.memory_mb,
        )

    async def _with_form(self, order: Execution, backend: str) -> Execution:
        found = {kept.form.backend: kept for kept in await self._kernels.forms(order.kernel_id)}
        found.pop(CERTIFICATE, None)
        if backend not in found:
            there = ", ".join([KERNEL, *sorted(found)])
            raise NotFound(
                f"the kernel has no form {backend!r}",
                why=f"there: {there}",
                todo="let a forge with that backend build it with level O3",
            )
        kept = found[backend]
        data = await self._kernels.read_form(order.kernel_id, kept.form.digest)
        return msgspec.structs.replace(order, form=kept.form.model_dump_json().encode(), data=data, seal=kept.seal)


def check_run(ir: BlueprintIR, shape: tuple[int, ...]) -> None:
    """Refuse an input that does not fit a design, or would keep a core busy for long.

    Raises:
        ContractError: If so.
    """
    wants = f"{ir.layout} with {ir.channels} channels"
    axes = 2 + ir.layout.rank
    fits = len(shape) >= 2 if ir.layout is Layout.FEATURES else len(shape) == axes
    if not fits or min(shape) < 1 or shape[1 if ir.layout.is_channels_first else -1] != ir.channels:
        raise ContractError(f"the input {list(shape)} does not fit", why=f"the kernel takes {wants}", code="ESP-3430")
    elements = 1
    for size in shape:
        elements *= size
    extent = shape[2:] if ir.layout.is_channels_first else shape[1:-1] if ir.layout.rank else ()
    examples = elements // ir.channels if not ir.layout.rank else shape[0]
    if elements > MAX_ELEMENTS:
        raise ContractError("the input is too large", why=f"{MAX_ELEMENTS} numbers are allowed", code="ESP-3431")
    if (flops := examples * cost(ir, extent).flops) > MAX_FLOPS:
        why = f"it takes {flops:.2g} FLOPs; {MAX_FLOPS:.2g} are allowed"
        raise ContractError("the run is too large", why=why, todo="ask for fewer examples", code="ESP-3431")


def _context(request: KernelExecutionRequest) -> ExecutionContext:
    try:
        return ExecutionContext.model_validate(request.execution_context)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
        raise ContractError("execution_context cannot be used", why=told[:500], todo="see /openapi.json") from None
