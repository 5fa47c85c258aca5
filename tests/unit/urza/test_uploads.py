"""Kernels whose bytes come as a stream, before what is known of them."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.kernel import CompiledKernelArtifact, KernelStatus
from esper.errors import ContractError, KernelRejected, NotFound
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.models import Blob
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

BYTES = bytes(range(256)) * 9_000


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


@pytest.fixture
async def artifact(library: KernelManager) -> CompiledKernelArtifact:
    """An artifact of a claimed job, its bytes left out."""
    await library.submit(request_for(adapter()))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    made = artifact_of(job.blueprint_id, BYTES)
    return made.model_copy(update={"kernel_binary": b"", "metadata": {"job": job.job_id}})


async def test_a_kernel_is_complete_once_its_bytes_and_its_report_are_there(
    library: KernelManager, artifact: CompiledKernelArtifact
) -> None:
    job_id, key = artifact.metadata["job"], artifact.artifact_id
    with pytest.raises(NotFound, match="upload them first"):
        await library.complete_uploaded(job_id, "w", artifact, verdict_on(artifact))
    await library.upload(key, len(BYTES), pieces(BYTES))
    kernel = await library.complete_uploaded(job_id, "w", artifact, verdict_on(artifact))
    assert kernel.status is KernelStatus.VALIDATED
    assert (await library.get_kernel(key)).size_bytes == len(BYTES)
    assert b"".join([chunk async for chunk in await library.stream(key)]) == BYTES
    assert b"".join([chunk async for chunk in await library.stream(key, 10, 20)]) == BYTES[10:20]


async def test_an_upload_that_is_not_what_it_says_can_be_tried_again(
    library: KernelManager, artifact: CompiledKernelArtifact
) -> None:
    job_id, key = artifact.metadata["job"], artifact.artifact_id
    with pytest.raises(ContractError, match="were not stored"):
        await library.upload(key, len(BYTES), pieces(b"x" * len(BYTES)))
    with pytest.raises(NotFound):
        await library.complete_uploaded(job_id, "w", artifact, verdict_on(artifact))
    await library.upload(key, len(BYTES), pieces(BYTES))
    await library.complete_uploaded(job_id, "w", artifact, verdict_on(artifact))


async def test_an_upload_that_fails_leaves_what_is_known_of_sound_bytes(
    library: KernelManager, artifact: CompiledKernelArtifact
) -> None:
    key = artifact.artifact_id

    async def size() -> int:
        async def looked(session: AsyncSession) -> int:
            return (await session.get_one(Blob, key)).size_bytes

        return await library.database.transact(looked)

    with pytest.raises(ContractError, match="were not stored"):
        await library.upload(key, 7, pieces(b"another"))
    await library.upload(key, len(BYTES), pieces(BYTES))
    await library.register_uploaded(artifact)
    assert await size() == len(BYTES)
    with pytest.raises(ContractError, match="were not stored"):
        await library.upload(key, 9, pieces(b"too short"))
    assert await size() == len(BYTES)


async def test_a_report_about_another_kernel_is_refused(
    library: KernelManager, artifact: CompiledKernelArtifact
) -> None:
    await library.upload(artifact.artifact_id, len(BYTES), pieces(BYTES))
    other = verdict_on(artifact_of(artifact.blueprint_id, b"another"))
    with pytest.raises(KernelRejected):
        await library.complete_uploaded(artifact.metadata["job"], "w", artifact, other)


async def test_a_kernel_that_was_retired_is_not_streamed(
    library: KernelManager, artifact: CompiledKernelArtifact
) -> None:
    await library.upload(artifact.artifact_id, len(BYTES), pieces(BYTES))
    await library.complete_uploaded(artifact.metadata["job"], "w", artifact, verdict_on(artifact))
    await library.set_kernel_status(artifact.artifact_id, KernelStatus.RETIRED)
    with pytest.raises(KernelRejected, match="retired"):
        await library.stream(artifact.artifact_id)
