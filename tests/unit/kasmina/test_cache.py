"""Kernels in memory, before a real library."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.contracts.kernel import BuildSpec
from esper.errors import NotFound
from esper.ir import digest_of
from esper.kasmina.cache import KernelCache
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from esper.testing.library_contract import LibraryContract


class CountingManager(KernelManager):
    """A library that counts who reads what."""

    reads: Counter[str]

    async def read(self, kernel_id: str) -> bytes:
        self.reads[kernel_id] += 1
        return await super().read(kernel_id)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[CountingManager]:
    async with await CountingManager.open(tmp_path / "library") as opened:
        opened.reads = Counter()
        yield opened


async def kernels(manager: KernelManager, count: int, size: int) -> list[str]:
    found = []
    for width in range(1, count + 1):
        await manager.submit(request_for(adapter(width)))
        job = await manager.claim("w", lease_s=30.0)
        assert job is not None
        artifact = artifact_of(job.blueprint_id, bytes([width]) * size)
        found.append((await manager.complete(job.job_id, "w", artifact, verdict_on(artifact))).kernel_id)
    return found


async def test_a_kernel_is_read_once_however_many_ask_for_it_at_once(manager: CountingManager) -> None:
    (key,) = await kernels(manager, 1, 100)
    cache = KernelCache(manager)
    assert set(await asyncio.gather(*(cache.read(key) for _ in range(20)))) == {b"\x01" * 100}
    assert await cache.read(key) == b"\x01" * 100
    assert manager.reads == {key: 1}
    assert (cache.hits, cache.misses) == (1, 1)


async def test_no_more_is_held_than_was_allowed_and_what_was_used_last_stays(manager: CountingManager) -> None:
    first, second, third = await kernels(manager, 3, 100)
    cache = KernelCache(manager, max_bytes=250)
    for key in (first, second, first, third, first):
        await cache.read(key)
    assert manager.reads == {first: 1, second: 1, third: 1}
    await cache.read(second)
    assert manager.reads[second] == 2


async def test_what_was_found_is_in_memory_before_it_is_asked_for(manager: CountingManager) -> None:
    await kernels(manager, 1, 100)
    cache = KernelCache(manager)
    found = await cache.find(adapter(1).digest, BuildSpec())
    assert found is not None
    await cache.settled()
    assert await cache.read(found.kernel_id) == b"\x01" * 100
    assert (cache.hits, sum(manager.reads.values())) == (1, 1)


async def test_a_prefetch_that_fails_is_quiet_and_the_read_says_why(manager: CountingManager) -> None:
    cache, nobody = KernelCache(manager), digest_of(b"nobody")
    cache.prefetch([nobody])
    await cache.settled()
    assert cache.failed == 1
    with pytest.raises(NotFound):
        await cache.read(nobody)


async def test_one_reader_that_is_cancelled_takes_the_kernel_from_no_other(manager: CountingManager) -> None:
    (key,) = await kernels(manager, 1, 100)
    cache = KernelCache(manager)
    first = asyncio.ensure_future(cache.read(key))
    second = asyncio.ensure_future(cache.read(key))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"\x01" * 100
    assert manager.reads == {key: 1}


class _Whole:
    """A cache with the queue behind it, as the contract wants both."""

    def __init__(self, manager: KernelManager) -> None:
        self._cache, self._manager = KernelCache(manager), manager

    def __getattr__(self, name: str) -> object:
        return getattr(self._cache if hasattr(KernelCache, name) else self._manager, name)


class TestKernelCacheIsALibrary(LibraryContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def library(self, tmp_path: Path, clock: ManualClock) -> AsyncIterator[object]:
        async with await KernelManager.open(tmp_path / "library", clock=clock) as manager:
            yield _Whole(manager)
