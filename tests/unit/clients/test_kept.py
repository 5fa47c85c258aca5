"""Kernels of a store over HTTP whose bytes stay here: fetched once, and asked for by right each time."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.contracts.kernel import KernelStatus
from esper.errors import KernelRejected, NotFound, StoreUnavailable
from esper.kasmina.cache import KernelCache
from esper.services.clients import TransportConfig, UrzaClient
from esper.services.clients.kept import KeptKernels
from esper.services.urza.kernel_manager import KernelManager, PersistentKernelCache
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from esper.testing.store_server import served


class CountingClient(UrzaClient):
    """Counts how often bytes were asked for."""

    reads = 0

    async def read(self, kernel_id: str) -> bytes:
        self.reads += 1
        return await super().read(kernel_id)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[KernelManager]:
    async with await KernelManager.open(tmp_path / "library") as manager:
        yield manager


async def made(manager: KernelManager) -> str:
    await manager.submit(request_for(adapter()))
    job = await manager.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"kernel")
    return (await manager.complete(job.job_id, "w", artifact, verdict_on(artifact))).kernel_id


async def test_bytes_come_over_the_wire_once_also_for_the_next_process(manager: KernelManager, tmp_path: Path) -> None:
    kernel_id = await made(manager)
    async with served(manager, UrzaConfig(status_age_s=0)) as address, CountingClient(address) as client:
        for _ in range(3):
            kept = KeptKernels(client, PersistentKernelCache(tmp_path / "cache").get)
            assert await KernelCache(client, read=kept.read).read(kernel_id) == b"kernel"
        assert client.reads == 1


async def test_a_kernel_that_was_withdrawn_is_not_taken_from_the_disk(manager: KernelManager, tmp_path: Path) -> None:
    kernel_id = await made(manager)
    async with served(manager) as address, UrzaClient(address, config=TransportConfig(tries=1)) as client:
        kept = KeptKernels(client, PersistentKernelCache(tmp_path / "cache").get)
        assert await kept.read(kernel_id) == b"kernel"
        await client.set_kernel_status(kernel_id, KernelStatus.RETIRED)
        with pytest.raises(KernelRejected, match="retired"):
            await kept.read(kernel_id)
        with pytest.raises(NotFound):
            await kept.read("sha256:" + "0" * 64)
    async with UrzaClient(address, config=TransportConfig(tries=1)) as client:
        with pytest.raises(StoreUnavailable):
            await KeptKernels(client, PersistentKernelCache(tmp_path / "cache").get).read(kernel_id)
