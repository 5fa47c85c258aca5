"""The artifact store over HTTP, with the same methods as the one in process."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from esper.contracts.adaptation import Outcome
from esper.contracts.kernel import (
    BlueprintContract,
    BlueprintStatus,
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    CompiledKernelArtifact,
    CompiledKernelContract,
    CompileJob,
    InferenceArtifact,
    JsonObject,
    KernelForm,
    KernelStatus,
    Measurement,
    ValidationResult,
)
from esper.contracts.store import (
    BlueprintPage,
    BlueprintQuery,
    BlueprintRecord,
    KernelPage,
    KernelQuery,
    KernelRecord,
    LineageEntry,
    OutcomeStatistics,
)
from esper.contracts.store_calls import (
    ArtifactHead,
    Became,
    BlueprintPut,
    BlueprintStatusChange,
    Claim,
    Completion,
    Failure,
    Finish,
    FormHead,
    Held,
    KernelStatusChange,
    KernelSummary,
    Renewal,
    Stored,
)
from esper.errors import KernelRejected, StoreUnavailable
from esper.ir import BlueprintIR, digest_of, is_digest
from esper.ports import Clock
from esper.services.clients.circuit_breaker import CircuitBreaker
from esper.services.clients.messages import Reply, Request, TransportConfig, unexpected
from esper.services.clients.transport import Transport

Item = TypeVar("Item", bound=BaseModel)
API = "/api/v1"
PIECE_BYTES = 256 * 1024


class UrzaClient:
    """Implements `esper.ports.Library` and `esper.ports.CompileQueue` over HTTP.

    ```python
    async with UrzaClient("http://localhost:8000") as store:
        kernels = await store.search_kernels(tags=["attention"], status="validated", min_performance=1000.0)
    ```

    Every method raises what the store raises, and beside it StoreUnavailable, DeadlineExceeded or CircuitOpen where it does
    not answer.

    Args:
        base_url: Where it is, such as ``http://localhost:8000``.
        key: API key; without one only a store on this machine answers.
        config: Limits.
        breaker: Shared with other clients of the same store.
        clock: Measures the breaker.
        tls: Trust and certificates, where the system's own do not do.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: SecretStr | str | None = None,
        config: TransportConfig | None = None,
        breaker: CircuitBreaker | None = None,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        secret = SecretStr(key) if isinstance(key, str) else key
        self.transport = Transport(
            base_url, key=secret, config=config, unavailable=StoreUnavailable, breaker=breaker, clock=clock, tls=tls
        )

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    # -- blueprints --------------------------------------------------------------------------------------------------

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
        return BlueprintPage(blueprints=_items(reply, BlueprintRecord), cursor=_next(reply))

    async def get_blueprint(self, blueprint_id: str) -> BlueprintRecord:
        """Return a blueprint."""
        return (await self._got(f"/blueprints/{_part(blueprint_id)}")).read_as(BlueprintRecord)

    async def get_architecture(self, blueprint_id: str) -> JsonObject:
        """Return the canonical form of a blueprint, digest verified."""
        reply = await self._got(f"/blueprints/{_part(blueprint_id)}/ir")
        if digest_of(reply.body) != blueprint_id:
            raise unexpected("a blueprint with another digest")
        return TypeAdapter(JsonObject).validate_json(reply.body)

    async def get_ancestors(self, blueprint_id: str) -> list[LineageEntry]:
        """Return the line from a blueprint to its origin."""
        return _items(await self._got(f"/blueprints/{_part(blueprint_id)}/lineage"), LineageEntry)

    async def get_descendants(self, blueprint_id: str, *, limit: int = 200) -> list[LineageEntry]:
        """Return what was made of a blueprint: itself first, the nearest next."""
        path = f"{API}/blueprints/{_part(blueprint_id)}/descendants"
        return _items(await self.transport.call(Request("GET", path, query={"limit": str(limit)})), LineageEntry)

    async def set_blueprint_status(self, blueprint_id: str, status: BlueprintStatus) -> BlueprintRecord:
        """Give a blueprint another status."""
        path = f"/blueprints/{_part(blueprint_id)}/status"
        return (await self._sent("PUT", path, BlueprintStatusChange(status=status))).read_as(BlueprintRecord)

    async def blueprint_statistics(self, blueprint_id: str) -> OutcomeStatistics:
        """Return what grafts of all kernels of a blueprint brought."""
        return (await self._got(f"/blueprints/{_part(blueprint_id)}/statistics")).read_as(OutcomeStatistics)

    async def withdraw(self, blueprint_id: str, build: BuildSpec) -> None:
        """End a build that waits or is at work; submitting it again starts over."""
        await self._sent("POST", f"/blueprints/{_part(blueprint_id)}/withdraw", build)

    # -- kernels -----------------------------------------------------------------------------------------------------

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
        return _items(await self._got("/kernels/search", query), KernelSummary)

    async def search(self, query: KernelQuery) -> KernelPage:
        """Return a page of the kernels that fit, with all that is known of them."""
        reply = await self._got("/kernels", query)
        return KernelPage(kernels=_items(reply, KernelRecord), cursor=_next(reply))

    async def find(self, blueprint_id: str, build: BuildSpec) -> CompiledKernelContract | None:
        """Return the validated kernel of a blueprint, or None while there is none."""
        reply = await self._got(f"/blueprints/{_part(blueprint_id)}/kernel", build)
        return None if reply.status == 204 else reply.read_as(CompiledKernelContract)

    async def get_kernel(self, kernel_id: str) -> KernelRecord:
        """Return a kernel's record, whatever its status."""
        return (await self._got(f"/kernels/{_part(kernel_id)}")).read_as(KernelRecord)

    async def get_report(self, kernel_id: str) -> ValidationResult:
        """Return what the validator found about a kernel."""
        return (await self._got(f"/kernels/{_part(kernel_id)}/report")).read_as(ValidationResult)

    async def get_kernel_lineage(self, kernel_id: str) -> list[LineageEntry]:
        """Return the blueprints from which a kernel descends: its own first, the origin last."""
        return _items(await self._got(f"/kernels/{_part(kernel_id)}/lineage"), LineageEntry)

    async def forms(self, kernel_id: str) -> list[KernelForm]:
        """Return what levels added to a kernel, the lowest level first."""
        return _items(await self._got(f"/kernels/{_part(kernel_id)}/forms"), KernelForm)

    async def read_form(self, kernel_id: str, digest: str) -> bytes:
        """Return the bytes of a form, digest verified; whoever loads them verifies the seal."""
        reply = await self._got(f"/kernels/{_part(kernel_id)}/forms/{_part(digest)}")
        if digest_of(reply.body) != digest:
            raise _damaged(digest)
        return reply.body

    async def kernel_statistics(self, kernel_id: str) -> OutcomeStatistics:
        """Return what grafts of a kernel brought."""
        return (await self._got(f"/kernels/{_part(kernel_id)}/statistics")).read_as(OutcomeStatistics)

    async def set_kernel_status(self, kernel_id: str, status: KernelStatus) -> KernelRecord:
        """Give a kernel another status."""
        path = f"/kernels/{_part(kernel_id)}/status"
        return (await self._sent("PUT", path, KernelStatusChange(status=status))).read_as(KernelRecord)

    async def report(self, outcome: Outcome) -> None:
        """Record what a graft brought."""
        await self._sent("POST", "/outcomes", outcome)

    # -- bytes -------------------------------------------------------------------------------------------------------

    async def read(self, kernel_id: str) -> bytes:
        """Return the bytes of a validated kernel, digest verified; as many as `TransportConfig.most_bytes` at most."""
        reply = await self._got(f"/kernels/{_part(kernel_id)}/bytes")
        if digest_of(reply.body) != kernel_id:
            raise _damaged(kernel_id)
        return reply.body

    @asynccontextmanager
    async def stream(self, kernel_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the bytes of a validated kernel in pieces; the last one is followed by an error where the digest is wrong."""
        request = Request("GET", f"{API}/kernels/{_part(kernel_id)}/bytes")
        async with self.transport.download(request) as (_, pieces):
            yield _verified(pieces, kernel_id)

    async def download(self, kernel_id: str, path: Path) -> int:
        """Write the bytes of a validated kernel to a file, which is there whole and verified or not at all.

        Returns:
            How many they are.
        """
        aside = path.with_name(f".{path.name}.part")
        size = 0
        try:
            with aside.open("wb") as file:
                async with self.stream(kernel_id) as pieces:
                    async for piece in pieces:
                        size += file.write(piece)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return size

    async def upload_bytes(self, data: bytes | Path) -> Stored:
        """Store bytes under their digest, from memory or from a file of any length."""
        digest = await _digest_of_file(data) if isinstance(data, Path) else digest_of(data)
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        request = Request("PUT", f"{API}/blobs/{digest}", headers=headers)
        if isinstance(data, bytes) and size <= PIECE_BYTES:
            return (await self.transport.call(Request("PUT", request.path, body=data, headers=headers))).read_as(Stored)
        return (await self.transport.upload(request, _pieces(data))).read_as(Stored)

    async def upload_kernel(self, artifact: CompiledKernelArtifact) -> CompiledKernelContract:
        """Store a kernel that waits for its validation; one that is there is left as it is."""
        _check_bytes(artifact)
        await self.upload_bytes(artifact.kernel_binary)
        return await self._posted("/kernels", ArtifactHead.of(artifact), CompiledKernelContract)

    async def store_report(self, report: ValidationResult) -> CompiledKernelContract:
        """Store what the validator found about a kernel that waits for it."""
        path = f"/kernels/{_part(report.kernel_id)}/report"
        return (await self._sent("PUT", path, report)).read_as(CompiledKernelContract)

    # -- work for the forge ------------------------------------------------------------------------------------------

    async def claim(self, worker: str, *, lease_s: float, finishing: bool = True) -> CompileJob | None:
        """Take the most urgent job, or None where there is none; without ``finishing`` only one that builds."""
        reply = await self._sent("POST", "/jobs/claim", Claim(worker=worker, lease_s=lease_s, finishing=finishing))
        return None if reply.status == 204 else reply.read_as(CompileJob)

    async def renew(self, job_id: str, worker: str, *, lease_s: float) -> None:
        """Keep a job that takes long."""
        await self._sent("POST", f"/jobs/{_part(job_id)}/renew", Renewal(worker=worker, lease_s=lease_s))

    async def complete(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, report: ValidationResult
    ) -> CompiledKernelContract:
        """Store the kernel with its report, and end the job."""
        _check_bytes(artifact)
        await self.upload_bytes(artifact.kernel_binary)
        await self._upload_forms(artifact.inference)
        body = Completion(worker=worker, artifact=ArtifactHead.of(artifact), report=report)
        return await self._posted(f"/jobs/{_part(job_id)}/complete", body, CompiledKernelContract)

    async def finish(
        self,
        job_id: str,
        worker: str,
        forms: Sequence[InferenceArtifact],
        performance: Measurement | None = None,
        shortfall: str = "",
    ) -> None:
        """Add to the kernel of a finishing job what was made of it, and end the job."""
        await self._upload_forms(forms)
        body = Finish(
            worker=worker, forms=tuple(map(FormHead.of, forms)), performance=performance, shortfall=shortfall[:4000]
        )
        await self._sent("POST", f"/jobs/{_part(job_id)}/finish", body)

    async def _upload_forms(self, forms: Sequence[InferenceArtifact]) -> None:
        for made in forms:
            await self.upload_bytes(made.data)

    async def fail(
        self, job_id: str, worker: str, reason: str, *, retry: bool, killed: bool = False
    ) -> BlueprintStatus:
        """Give a job up, for another try or for good."""
        body = Failure(worker=worker, reason=reason[:4000], retry=retry, killed=killed)
        return (await self._posted(f"/jobs/{_part(job_id)}/fail", body, Became)).status

    async def release(self, job_id: str, worker: str) -> None:
        """Return a job untried, because the worker stops."""
        await self._sent("POST", f"/jobs/{_part(job_id)}/release", Held(worker=worker))

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _got(self, path: str, query: BaseModel | None = None) -> Reply:
        return await self.transport.call(Request("GET", API + path, query={} if query is None else _query(query)))

    async def _sent(self, method: str, path: str, body: BaseModel) -> Reply:
        headers = {"Content-Type": "application/json"}
        data = body.model_dump_json().encode()
        return await self.transport.call(Request(method, API + path, body=data, headers=headers))

    async def _posted(self, path: str, body: BaseModel, kind: type[Item]) -> Item:
        return (await self._sent("POST", path, body)).read_as(kind)


def _check_bytes(artifact: CompiledKernelArtifact) -> None:
    """Refuse an artifact that is not what it says it is, as the store would."""
    found = digest_of(artifact.kernel_binary)
    if found != artifact.artifact_id:
        raise KernelRejected(
            f"artifact {artifact.artifact_id[:80]} was not stored",
            why=f"its bytes have the digest {found}",
            todo="compile it again",
        )


def _part(name: str) -> str:
    """Quote one part of a path, so that no name leads elsewhere."""
    return quote(name, safe=":")


def _query(model: BaseModel) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {}
    for name, value in model.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, list):
            found[name] = [str(item) for item in value]
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def _items(reply: Reply, kind: type[Item]) -> list[Item]:
    try:
        return TypeAdapter(list[kind]).validate_json(reply.body)  # type: ignore[valid-type]
    except ValidationError as error:
        raise unexpected(f"no list of {kind.__name__}") from error


def _next(reply: Reply) -> str | None:
    """Return the cursor of the next page from the Link header."""
    target = reply.headers.get("Link", "").partition(">")[0].removeprefix("<")
    return parse_qs(urlsplit(target).query).get("cursor", [None])[0] if target else None


async def _verified(pieces: AsyncIterator[bytes], digest: str) -> AsyncIterator[bytes]:
    found = hashlib.sha256()
    async for piece in pieces:
        found.update(piece)
        yield piece
    if f"sha256:{found.hexdigest()}" != digest:
        raise _damaged(digest)


async def _pieces(data: bytes | Path) -> AsyncIterator[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]
        return
    with data.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece


async def _digest_of_file(path: Path) -> str:
    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return f"sha256:{await asyncio.to_thread(digest)}"


def _damaged(digest: str) -> StoreUnavailable:
    wrong = "" if is_digest(digest) else "; that is no content address"
    return StoreUnavailable(
        f"the bytes of {digest[:80]} arrived with another digest{wrong}", todo="try again, or look after the store"
    )


__all__ = ["UrzaClient"]
