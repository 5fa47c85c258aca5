"""Kernels of a store over HTTP, without their bytes."""

from collections.abc import Sequence

from esper.contracts.adaptation import Outcome
from esper.contracts.kernel import (
    BuildSpec,
    CompiledKernelContract,
    KernelForm,
    KernelStatus,
    ValidationResult,
)
from esper.contracts.store import (
    KernelPage,
    KernelQuery,
    KernelRecord,
    LineageEntry,
    OutcomeStatistics,
)
from esper.contracts.store_calls import (
    KernelStatusChange,
    KernelSummary,
)
from esper.services.clients.store_calls import StoreCalls, items, next_cursor, part


class KernelCalls(StoreCalls):
    """Finds kernels, and tells what became of them."""

    async def search_kernels(
        self,
        tags: Sequence[str] = (),
        status: KernelStatus | str | None = None,
        min_performance: float | None = None,
        *,
        limit: int = 50,
    ) -> list[KernelSummary]:
        """Return kernels with any of the tags, fastest first; those that were not measured come last.

        Args:
            tags: Any of these; none means every kernel.
            status: Only kernels of this status.
            min_performance: Only kernels of at least this throughput, in examples per second.
            limit: How many at most.
        """
        query = KernelQuery.model_validate(
            {"tags": list(tags), "status": status, "min_performance": min_performance, "limit": limit}
        )
        return items(await self._got("/kernels/search", query), KernelSummary)

    async def search(self, query: KernelQuery) -> KernelPage:
        """Return a page of the kernels that fit, with all that is known of them."""
        reply = await self._got("/kernels", query)
        return KernelPage(kernels=items(reply, KernelRecord), cursor=next_cursor(reply))

    async def find(self, blueprint_id: str, build: BuildSpec) -> CompiledKernelContract | None:
        """Return the validated kernel of a blueprint, or None while there is none."""
        reply = await self._got(f"/blueprints/{part(blueprint_id)}/kernel", build)
        return None if reply.status == 204 else reply.read_as(CompiledKernelContract)

    async def get_kernel(self, kernel_id: str) -> KernelRecord:
        """Return a kernel's record, whatever its status."""
        return (await self._got(f"/kernels/{part(kernel_id)}")).read_as(KernelRecord)

    async def get_report(self, kernel_id: str) -> ValidationResult:
        """Return what the validator found about a kernel."""
        return (await self._got(f"/kernels/{part(kernel_id)}/report")).read_as(ValidationResult)

    async def get_kernel_lineage(self, kernel_id: str) -> list[LineageEntry]:
        """Return the blueprints from which a kernel descends: its own first, the origin last; nothing where there is none."""
        return await self._line(f"/kernels/{part(kernel_id)}/lineage")

    async def forms(self, kernel_id: str) -> list[KernelForm]:
        """Return what levels added to a kernel, the lowest level first."""
        return items(await self._got(f"/kernels/{part(kernel_id)}/forms"), KernelForm)

    async def kernel_statistics(self, kernel_id: str) -> OutcomeStatistics:
        """Return what grafts of a kernel brought."""
        return (await self._got(f"/kernels/{part(kernel_id)}/statistics")).read_as(OutcomeStatistics)

    async def set_kernel_status(self, kernel_id: str, status: KernelStatus) -> KernelRecord:
        """Give a kernel another status."""
        path = f"/kernels/{part(kernel_id)}/status"
        return (await self._sent("PUT", path, KernelStatusChange(status=status))).read_as(KernelRecord)

    async def report(self, outcome: Outcome) -> None:
        """Record what a graft brought."""
        await self._sent("POST", "/outcomes", outcome)


__all__ = ["KernelCalls"]
