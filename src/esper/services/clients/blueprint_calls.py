"""Blueprints of a store over HTTP."""

from pydantic import TypeAdapter

from esper.contracts.kernel import (
    BlueprintContract,
    BlueprintStatus,
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    JsonObject,
)
from esper.contracts.store import (
    MAX_PAGE,
    BlueprintPage,
    BlueprintQuery,
    BlueprintRecord,
    LineageEntry,
    OutcomeStatistics,
)
from esper.contracts.store_calls import (
    BlueprintPut,
    BlueprintStatusChange,
)
from esper.ir import BlueprintIR, digest_of
from esper.services.clients.messages import unexpected
from esper.services.clients.store_calls import StoreCalls, items, next_cursor, part


class BlueprintCalls(StoreCalls):
    """Stores, finds and follows blueprints."""

    async def submit_blueprint(self, request: BlueprintSubmissionRequest) -> BlueprintSubmissionResponse:
        """Store a blueprint, and queue its build where nobody did."""
        return await self._posted("/blueprints", request, BlueprintSubmissionResponse)

    async def submit(self, request: BlueprintSubmissionRequest) -> BlueprintSubmissionResponse:
        """Do the same, under the name that `esper.ports.Library` has for it."""
        return await self.submit_blueprint(request)

    async def store_blueprint(self, blueprint: BlueprintContract, parent_id: str | None = None) -> str:
        """Store a blueprint without queueing a build, and return its content address."""
        digest = BlueprintIR.from_json(blueprint.architecture_ir).digest
        await self._sent("PUT", f"/blueprints/{digest}", BlueprintPut(blueprint=blueprint, parent_id=parent_id))
        return digest

    async def search_blueprints(self, query: BlueprintQuery) -> BlueprintPage:
        """Return a page of the blueprints that fit, by name and version."""
        reply = await self._got("/blueprints", query)
        return BlueprintPage(blueprints=items(reply, BlueprintRecord), cursor=next_cursor(reply))

    async def get_blueprint(self, blueprint_id: str) -> BlueprintRecord:
        """Return a blueprint."""
        return (await self._got(f"/blueprints/{part(blueprint_id)}")).read_as(BlueprintRecord)

    async def get_architecture(self, blueprint_id: str) -> JsonObject:
        """Return the canonical form of a blueprint, digest verified."""
        reply = await self._got(f"/blueprints/{part(blueprint_id)}/ir")
        if digest_of(reply.body) != blueprint_id:
            raise unexpected("a blueprint with another digest")
        return TypeAdapter(JsonObject).validate_json(reply.body)

    async def get_ancestors(self, blueprint_id: str) -> list[LineageEntry]:
        """Return the line from a blueprint to its origin; nothing where there is none."""
        return await self._line(f"/blueprints/{part(blueprint_id)}/lineage")

    async def get_descendants(self, blueprint_id: str, *, limit: int = MAX_PAGE) -> list[LineageEntry]:
        """Return what was made of a blueprint: itself first, the nearest next; nothing where there is none."""
        return await self._line(f"/blueprints/{part(blueprint_id)}/descendants", limit=str(limit))

    async def set_blueprint_status(self, blueprint_id: str, status: BlueprintStatus) -> BlueprintRecord:
        """Give a blueprint another status."""
        path = f"/blueprints/{part(blueprint_id)}/status"
        return (await self._sent("PUT", path, BlueprintStatusChange(status=status))).read_as(BlueprintRecord)

    async def blueprint_statistics(self, blueprint_id: str) -> OutcomeStatistics:
        """Return what grafts of all kernels of a blueprint brought."""
        return (await self._got(f"/blueprints/{part(blueprint_id)}/statistics")).read_as(OutcomeStatistics)

    async def withdraw(self, blueprint_id: str, build: BuildSpec) -> None:
        """End a build that waits or is at work; submitting it again starts over."""
        await self._sent("POST", f"/blueprints/{part(blueprint_id)}/withdraw", build)


__all__ = ["BlueprintCalls"]
