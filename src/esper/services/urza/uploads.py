"""Kernels that come without a job: their bytes, then what they are, then the report that opens them."""

from sqlalchemy.orm import Session

from esper.contracts.kernel import CompiledKernelArtifact, CompiledKernelContract, KernelStatus, ValidationResult
from esper.contracts.store_calls import ArtifactHead, stated
from esper.errors import Conflict, KernelRejected, NotFound
from esper.ir import digest_of
from esper.services.urza.database import Database
from esper.services.urza.judging import judge
from esper.services.urza.keeper import BlobKeeper
from esper.services.urza.models import Blueprint, Kernel
from esper.services.urza.records import kernel_contract, kernel_row


class Uploads:
    """Takes kernels that were built elsewhere; none may be grafted before its report is there.

    Args:
        database: Where rows are kept.
        keeper: Where bytes are kept.
    """

    def __init__(self, database: Database, keeper: BlobKeeper) -> None:
        self._database, self._keeper = database, keeper

    async def upload_kernel(self, artifact: CompiledKernelArtifact) -> CompiledKernelContract:
        """Store a kernel that waits for its validation; one that is there is left as it is.

        Raises:
            ContractError: If no store takes what is said of it, such as the name of its device.
            KernelRejected: If its bytes do not have the digest that is its id.
            NotFound: If its blueprint is not there.
            Conflict: If the kernel is there, made from another blueprint.
            StoreUnavailable: If its bytes could not be stored.
        """
        with stated():
            ArtifactHead.of(artifact)
        found = digest_of(artifact.kernel_binary)
        if found != artifact.artifact_id:
            raise KernelRejected(
                f"artifact {artifact.artifact_id[:80]} was not stored", why=f"its bytes have the digest {found}"
            )
        await self._keeper.put(artifact.kernel_binary)
        return await self.register_uploaded(artifact)

    async def register_uploaded(self, artifact: CompiledKernelArtifact) -> CompiledKernelContract:
        """Do the same for a kernel whose bytes were uploaded before.

        Args:
            artifact: What it is, its ``kernel_binary`` left empty.

        Raises:
            NotFound: If its bytes or its blueprint are not there.
            Conflict: If the kernel is there, made from another blueprint.
        """
        size = await self._keeper.touch(artifact.artifact_id)

        def registered(session: Session) -> CompiledKernelContract:
            kernel = session.get(Kernel, artifact.artifact_id)
            if kernel is None:
                if session.get(Blueprint, artifact.blueprint_id) is None:
                    raise NotFound(f"there is no blueprint {artifact.blueprint_id[:80]}", todo="submit it first")
                kernel = kernel_row(artifact, size)
                session.add(kernel)
                session.flush()
            if kernel.blueprint_id != artifact.blueprint_id:
                raise Conflict("the kernel was made from another blueprint", why=f"it is {kernel.blueprint_id}")
            return kernel_contract(kernel)

        return await self._database.apply(registered)

    async def store_report(self, report: ValidationResult) -> CompiledKernelContract:
        """Store what the validator found about a kernel; it is then validated or rejected.

        Raises:
            NotFound: If there is no such kernel.
            Conflict: If its report is there.
        """

        def stored(session: Session) -> CompiledKernelContract:
            kernel = session.get(Kernel, report.kernel_id, with_for_update=True)
            if kernel is None:
                raise NotFound(f"there is no kernel {report.kernel_id[:80]}", todo="upload it first")
            if kernel.status is not KernelStatus.PENDING_VALIDATION:
                raise Conflict("the kernel has its report", why=f"it is {kernel.status}")
            judge(session, kernel, report)
            return kernel_contract(kernel)

        return await self._database.apply(stored)
