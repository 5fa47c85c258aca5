"""How a store is, and who wrote what, over HTTP."""

from esper.contracts.store import AuditRecord, Health, Status
from esper.services.clients.messages import Request
from esper.services.clients.store_calls import API, StoreCalls, items


class OperationCalls(StoreCalls):
    """Asks what whoever runs a store wants to know."""

    async def ready(self) -> None:
        """Return once the store serves; where it does not within the time of a call, StoreUnavailable says why."""
        (await self.transport.call(Request("GET", "/ready"))).read_as(Health)

    async def status(self) -> Status:
        """Return how the store is."""
        return (await self.transport.call(Request("GET", "/status"))).read_as(Status)

    async def metrics(self) -> str:
        """Return what it counts, as Prometheus reads it."""
        return (await self.transport.call(Request("GET", "/metrics"))).body.decode()

    async def audit_log(
        self, *, subject: str | None = None, before: int | None = None, limit: int = 50
    ) -> list[AuditRecord]:
        """Return who wrote what, the newest first.

        Args:
            subject: Only what was written at this path.
            before: Only those with a smaller id.
            limit: How many at most.
        """
        asked = {"subject": subject, "before": before, "limit": limit}
        query = {name: str(value) for name, value in asked.items() if value is not None}
        return items(await self.transport.call(Request("GET", f"{API}/audit", query=query)), AuditRecord)


__all__ = ["OperationCalls"]
