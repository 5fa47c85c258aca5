"""Work of a store for the forge, over HTTP."""

from collections.abc import Sequence

from esper.contracts.kernel import (
    BlueprintStatus,
    CompiledKernelArtifact,
    CompiledKernelContract,
    CompileJob,
    InferenceArtifact,
    Measurement,
    ValidationResult,
)
from esper.contracts.store_calls import (
    MAX_REASON,
    ArtifactHead,
    Became,
    Claim,
    Completion,
    Failure,
    Finish,
    FormHead,
    Held,
    Renewal,
    Review,
    stated,
)
from esper.services.clients.byte_calls import ByteCalls, check_bytes
from esper.services.clients.store_calls import part


class JobCalls(ByteCalls):
    """Takes builds, and brings what came of them."""

    async def claim(self, worker: str, *, lease_s: float, finishing: bool = True) -> CompileJob | None:
        """Take the most urgent job, or None where there is none; without ``finishing`` only one that builds."""
        with stated():
            body = Claim(worker=worker, lease_s=lease_s, finishing=finishing)
        reply = await self._sent("POST", "/jobs/claim", body)
        return None if reply.status == 204 else reply.read_as(CompileJob)

    async def review(self, worker: str, hardware: str, *, lease_s: float) -> CompileJob | None:
        """Take the most used kernel that was not measured on some hardware, to prove it again; None where there is none."""
        with stated():
            body = Review(worker=worker, hardware=hardware, lease_s=lease_s)
        reply = await self._sent("POST", "/jobs/review", body)
        return None if reply.status == 204 else reply.read_as(CompileJob)

    async def renew(self, job_id: str, worker: str, *, lease_s: float) -> None:
        """Keep a job that takes long."""
        with stated():
            body = Renewal(worker=worker, lease_s=lease_s)
        await self._sent("POST", f"/jobs/{part(job_id)}/renew", body)

    async def complete(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, report: ValidationResult
    ) -> CompiledKernelContract:
        """Store the kernel with its report, and end the job."""
        check_bytes(artifact)
        await self.upload_bytes(artifact.kernel_binary)
        await self._upload_forms(artifact.inference)
        return await self.complete_uploaded(job_id, worker, artifact, report)

    async def complete_uploaded(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, report: ValidationResult
    ) -> CompiledKernelContract:
        """Do the same for a kernel whose bytes were uploaded before; its ``kernel_binary`` is not looked at."""
        with stated():
            body = Completion(worker=worker, artifact=ArtifactHead.of(artifact), report=report)
        return await self._posted(f"/jobs/{part(job_id)}/complete", body, CompiledKernelContract)

    async def finish(
        self,
        job_id: str,
        worker: str,
        forms: Sequence[InferenceArtifact],
        performance: Measurement | None = None,
        shortfall: str = "",
        report: ValidationResult | None = None,
    ) -> None:
        """Add to the kernel of a finishing job, or of a review, what was made of it, and end the job."""
        await self._upload_forms(forms)
        await self.finish_uploaded(job_id, worker, forms, performance, shortfall, report)

    async def finish_uploaded(
        self,
        job_id: str,
        worker: str,
        forms: Sequence[InferenceArtifact],
        performance: Measurement | None = None,
        shortfall: str = "",
        report: ValidationResult | None = None,
    ) -> None:
        """Do the same with forms whose bytes were uploaded before."""
        with stated():
            body = Finish(
                worker=worker,
                forms=tuple(map(FormHead.of, forms)),
                performance=performance,
                shortfall=shortfall[:MAX_REASON],
                report=report,
            )
        await self._sent("POST", f"/jobs/{part(job_id)}/finish", body)

    async def fail(
        self, job_id: str, worker: str, reason: str, *, retry: bool, killed: bool = False
    ) -> BlueprintStatus:
        """Give a job up, for another try or for good."""
        with stated():
            body = Failure(worker=worker, reason=reason[:MAX_REASON], retry=retry, killed=killed)
        return (await self._posted(f"/jobs/{part(job_id)}/fail", body, Became)).status

    async def release(self, job_id: str, worker: str) -> None:
        """Return a job untried, because the worker stops."""
        with stated():
            body = Held(worker=worker)
        await self._sent("POST", f"/jobs/{part(job_id)}/release", body)


__all__ = ["JobCalls"]
