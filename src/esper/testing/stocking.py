"""How tests put kernels into a library that has no forge: jobs are claimed, and completed with bytes that nobody compiled."""

from collections.abc import Awaitable
from typing import Protocol

from esper.contracts.adaptation import Outcome, Verdict
from esper.contracts.kernel import BuildSpec, CompiledKernelContract, CompileJob, KernelForm
from esper.errors import EsperError
from esper.ports import CompileQueue, Library
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

LEASE_S = 30.0
O3 = BuildSpec(level="O3")


class Stock(Library, CompileQueue, Protocol):
    """A library with its queue, and what levels add to its kernels."""

    async def forms(self, kernel_id: str) -> list[KernelForm]:
        """Return what levels added to a kernel, the lowest level first."""
        ...

    async def read_form(self, kernel_id: str, digest: str) -> bytes:
        """Return the bytes of a form, digest verified."""
        ...


async def claimed(library: CompileQueue, worker: str) -> CompileJob:
    """Claim a job that must be there."""
    job = await library.claim(worker, lease_s=LEASE_S)
    assert job is not None, "there is no job to claim"
    return job


async def compiled(library: CompileQueue, data: bytes, *, reasons: tuple[str, ...] = ()) -> CompiledKernelContract:
    """Claim the next job and complete it with the given bytes."""
    job = await claimed(library, "forge")
    artifact = artifact_of(job.blueprint_id, data)
    return await library.complete(job.job_id, "forge", artifact, verdict_on(artifact, reasons=reasons))


async def built(library: Stock, width: int) -> CompiledKernelContract:
    """Have a kernel that was measured."""
    await library.submit(request_for(adapter(width)))
    return await compiled(library, f"kernel {width}".encode())


def outcome_of(decision_id: str, kernel_id: str, verdict: Verdict = Verdict.KEPT, gain: float | None = 0.1) -> Outcome:
    """Return what a decision about a kernel brought."""
    return Outcome(
        decision_id=decision_id, run_id="run-1", slot="fc", seed_idx=0, blueprint="adapter", kernel_id=kernel_id,
        verdict=verdict, gain=gain, gain_error=None, params=10, steps=100,
    )  # fmt: skip


async def unmeasured(library: Stock) -> CompiledKernelContract:
    """Have a kernel that is proven and was not measured."""
    await library.submit(request_for(adapter()))
    job = await claimed(library, "forge")
    artifact = artifact_of(job.blueprint_id, b"not measured")
    return await library.complete(job.job_id, "forge", artifact, verdict_on(artifact, measured=False))


async def refused(work: Awaitable[object], kind: type[EsperError]) -> EsperError:
    """Return the error with which work must fail."""
    try:
        await work
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


async def finishing(library: Stock) -> CompiledKernelContract:
    """Have a kernel that waits for what level 3 adds."""
    await library.submit(request_for(adapter(), build=O3))
    return await compiled(library, b"proven")
