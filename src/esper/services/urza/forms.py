"""What levels add to kernels: certificates and inference forms, kept with the forge's seal."""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from esper.contracts.ids import new_id
from esper.contracts.kernel import (
    CERTIFICATE,
    InferenceArtifact,
    InferenceForm,
    JobPhase,
    KernelForm,
    Measurement,
    ValidationResult,
)
from esper.contracts.store_calls import MAX_REASON, Finish, FormHead, stated
from esper.errors import Conflict, KernelRejected, NotFound
from esper.ir import digest_of
from esper.ports import BlobStore, Clock
from esper.services.urza.database import Database
from esper.services.urza.holding import end, held
from esper.services.urza.judging import measured, reviewed
from esper.services.urza.keeper import BlobKeeper
from esper.services.urza.models import CompileJobRow, InferenceFormRow, JobStatus, Kernel
from esper.signing.sealed import signer

FINISHING_PRIORITY = 0
"""Behind every build, whose least priority is 1."""


class Forms:
    """Keeps the forms of kernels, and ends the jobs that make them.

    Args:
        database: Where rows are kept.
        keeper: Puts bytes.
        blobs: Where bytes are read.
        clock: Measures leases.
    """

    def __init__(self, database: Database, keeper: BlobKeeper, blobs: BlobStore, clock: Clock) -> None:
        self._database, self._keeper, self._blobs, self._clock = database, keeper, blobs, clock

    async def forms(self, kernel_id: str) -> list[KernelForm]:
        """Return what levels added to a kernel, the lowest level first.

        Raises:
            NotFound: If there is no such kernel.
        """
        rows = select(InferenceFormRow).where(InferenceFormRow.kernel_id == kernel_id)
        async with self._database.reading() as session:
            kernel = await session.get(Kernel, kernel_id)
            if kernel is None:
                raise NotFound(f"there is no kernel {kernel_id[:80]}", todo="submit its blueprint")
            found = await session.scalars(rows.order_by(InferenceFormRow.level, InferenceFormRow.created_at))
            return [_told(row, kernel.blueprint_id) for row in found]

    async def form_size(self, kernel_id: str, digest: str) -> int:
        """Return how many bytes a form of a kernel has.

        Raises:
            NotFound: If the kernel has no such form.
        """
        row = InferenceFormRow
        query = select(row.size_bytes).where(row.kernel_id == kernel_id, row.digest == digest).limit(1)
        async with self._database.reading() as session:
            size = await session.scalar(query)
        if size is None:
            raise NotFound(f"kernel {kernel_id[:80]} has no form {digest[:80]}", todo="list its forms")
        return size

    async def read_form(self, kernel_id: str, digest: str) -> bytes:
        """Return the bytes of a form, digest verified; whoever loads them verifies the seal.

        Raises:
            NotFound: If the kernel has no such form.
            StoreUnavailable: If its bytes are damaged.
        """
        await self.form_size(kernel_id, digest)
        return await self._blobs.get(digest)

    async def stream_form(self, kernel_id: str, digest: str) -> AsyncIterator[bytes]:
        """Return the bytes of a form as they are read; the last chunk comes only if the digest of the whole is right.

        Raises:
            NotFound: If the kernel has no such form.
        """
        await self.form_size(kernel_id, digest)
        return self._blobs.stream(digest)

    async def finish(
        self,
        job_id: str,
        worker: str,
        forms: Sequence[InferenceArtifact],
        performance: Measurement | None = None,
        shortfall: str = "",
        report: ValidationResult | None = None,
    ) -> None:
        """Add to the kernel of a finishing job, or of a review, what was made of it, and end the job.

        Args:
            job_id: The job.
            worker: Who holds it.
            forms: Forms with their bytes.
            performance: What was measured of the kernel itself; it takes the place of what was there.
            shortfall: Why the kernel has not all that its build asks for; it stays written in the job.
            report: What a review found, in the place of the report that was there.

        Raises:
            ContractError: If there are too many of them.
            KernelRejected: If a form is not what it says it is, or has no seal.
            Conflict: If the lease ran out and somebody else holds the job, or it finishes nothing.
            StoreUnavailable: If the bytes could not be stored.
        """
        with stated():
            Finish(worker=worker, forms=tuple(map(FormHead.of, forms)))
        await put_forms(self._keeper, forms)
        await self._finished(job_id, worker, forms, performance, shortfall, report)

    async def finish_uploaded(
        self,
        job_id: str,
        worker: str,
        forms: Sequence[InferenceArtifact],
        performance: Measurement | None = None,
        shortfall: str = "",
        report: ValidationResult | None = None,
    ) -> None:
        """Do the same with forms whose bytes were put into `blobs` before.

        Raises:
            NotFound: If bytes are not there.
        """
        await touch_forms(self._keeper, forms)
        await self._finished(job_id, worker, forms, performance, shortfall, report)

    async def _finished(
        self,
        job_id: str,
        worker: str,
        forms: Sequence[InferenceArtifact],
        performance: Measurement | None,
        shortfall: str,
        report: ValidationResult | None,
    ) -> None:
        def finished(session: Session) -> None:
            row = held(session, job_id, worker)
            kernel = session.get(Kernel, row.kernel_id) if row.kernel_id is not None else None
            if row.phase is JobPhase.BUILD or kernel is None:
                raise Conflict(f"job {job_id} finishes no kernel", why=f"it is to {row.phase}", todo="complete it")
            record_forms(session, kernel.id, forms)
            if report is not None:
                reviewed(session, kernel, report)
            elif performance is not None:
                measured(session, kernel, performance)
            kernel.optimization_level = max(kernel.optimization_level, *(made.form.level for made in forms), "")
            row.reason = shortfall[:MAX_REASON]
            end(row, JobStatus.DONE, self._clock)

        await self._database.apply(finished)


def finishing_job(built: CompileJobRow, kernel_id: str, clock: Clock) -> CompileJobRow:
    """Return the job that measures a kernel, and adds what the level of its build adds."""
    return CompileJobRow(
        id=new_id("job"),
        blueprint_id=built.blueprint_id,
        build_key=digest_of(f"finish {built.build_key}".encode()),
        build=built.build,
        priority=FINISHING_PRIORITY,
        status=JobStatus.QUEUED,
        attempts=0,
        deaths=0,
        reason="",
        queued_at=clock.now_s(),
        phase=JobPhase.FINISH,
        kernel_id=kernel_id,
    )


async def put_forms(keeper: BlobKeeper, forms: Sequence[InferenceArtifact]) -> None:
    """Store the bytes of forms, each of them checked first.

    Raises:
        KernelRejected: If one is not what it says it is, or has no seal.
    """
    check_forms(forms)
    for made in forms:
        await keeper.put(made.data)


def check_forms(forms: Sequence[InferenceArtifact]) -> None:
    """Refuse forms that are not what they say they are, or have no seal.

    Raises:
        KernelRejected: If there is one.
    """
    for made in forms:
        _check_sealed(made)
        if (digest_of(made.data), len(made.data)) != (made.form.digest, made.form.size_bytes):
            raise _wrong(made, f"its bytes have the digest {digest_of(made.data)[:19]}")


async def touch_forms(keeper: BlobKeeper, forms: Sequence[InferenceArtifact]) -> None:
    """Say that forms are needed whose bytes were uploaded before.

    Raises:
        KernelRejected: If one is not what it says it is, or has no seal.
        NotFound: If bytes are not there.
    """
    for made in forms:
        _check_sealed(made)
        if (size := await keeper.touch(made.form.digest)) != made.form.size_bytes:
            raise _wrong(made, f"{size} bytes were uploaded, not {made.form.size_bytes}")


def record_forms(session: Session, kernel_id: str, forms: Sequence[InferenceArtifact]) -> None:
    """Write the rows of forms whose bytes are there."""
    for made in forms:
        form = made.form
        session.merge(
            InferenceFormRow(
                kernel_id=kernel_id, backend=form.backend, device=form.device, torch=form.torch, level=form.level,
                digest=form.digest, size_bytes=form.size_bytes, latency_ms=form.latency_p50_ms, seal=made.seal,
                content=form.model_dump(mode="json"),
            )
        )  # fmt: skip


def _check_sealed(made: InferenceArtifact) -> None:
    if made.form.backend != CERTIFICATE or made.seal:
        signer(made.seal)


def _wrong(made: InferenceArtifact, why: str) -> KernelRejected:
    return KernelRejected(f"the form {made.form.backend} was not stored", why=why, todo="make it again")


def _told(row: InferenceFormRow, blueprint_id: str) -> KernelForm:
    return KernelForm(
        kernel_id=row.kernel_id,
        blueprint_id=blueprint_id,
        form=InferenceForm.model_validate(row.content),
        seal=row.seal,
        created_at=row.created_at,
    )
