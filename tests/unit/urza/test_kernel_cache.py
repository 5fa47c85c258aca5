"""Kernels on disk: bounded, shared, verified, and there after a restart."""

import asyncio
import os
from pathlib import Path

import pytest

from esper.errors import ContractError, StoreUnavailable
from esper.ir import digest_of
from esper.services.urza.kernel_manager import PersistentKernelCache


class Source:
    """Gives bytes by their digest, slowly, and counts."""

    def __init__(self, *contents: bytes) -> None:
        self.fetched: list[str] = []
        self.contents = {digest_of(data): data for data in contents}

    async def fetch(self, kernel_id: str) -> bytes:
        self.fetched.append(kernel_id)
        await asyncio.sleep(0.01)
        return self.contents[kernel_id]


A, B, C = (bytes([n]) * 100 for n in (1, 2, 3))


async def test_a_kernel_is_fetched_once_however_many_ask_and_is_there_after_a_restart(tmp_path: Path) -> None:
    source, key = Source(A), digest_of(A)
    cache = PersistentKernelCache(tmp_path)
    assert set(await asyncio.gather(*(cache.get(key, source.fetch) for _ in range(25)))) == {A}
    assert await PersistentKernelCache(tmp_path).get(key, source.fetch) == A
    assert source.fetched == [key]


async def test_no_more_is_kept_than_was_allowed_and_what_was_used_last_stays(tmp_path: Path) -> None:
    source = Source(A, B, C)
    cache = PersistentKernelCache(tmp_path, max_bytes=250)
    for data in (A, B, A, C):
        await cache.get(digest_of(data), source.fetch)
        await asyncio.sleep(0.01)  # file systems tell moments apart by some milliseconds
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 200
    assert cache.evicted == 1
    await cache.get(digest_of(A), source.fetch)
    assert source.fetched == [digest_of(data) for data in (A, B, C)]


async def test_the_bound_holds_for_what_was_there_before(tmp_path: Path) -> None:
    source = Source(A, B, C)
    for data in (A, B):
        await PersistentKernelCache(tmp_path).get(digest_of(data), source.fetch)
    await PersistentKernelCache(tmp_path, max_bytes=100).get(digest_of(C), source.fetch)
    assert [path.name for path in tmp_path.iterdir()] == [digest_of(C).removeprefix("sha256:")]


async def test_the_bound_holds_for_all_who_share_the_folder(tmp_path: Path) -> None:
    one, other = (PersistentKernelCache(tmp_path, max_bytes=250) for _ in range(2))
    for cache, data in ((one, A), (other, B), (one, C), (other, bytes(100))):
        await cache.get(digest_of(data), Source(data).fetch)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 250


async def test_a_kernel_larger_than_the_bound_is_handed_on_and_not_kept(tmp_path: Path) -> None:
    cache = PersistentKernelCache(tmp_path, max_bytes=99)
    assert await cache.get(digest_of(A), Source(A).fetch) == A
    assert list(tmp_path.iterdir()) == []


async def test_damaged_bytes_are_fetched_again(tmp_path: Path) -> None:
    source, key = Source(A), digest_of(A)
    await PersistentKernelCache(tmp_path).get(key, source.fetch)
    (path,) = tmp_path.iterdir()
    path.write_bytes(A[:-1] + b"x")
    cache = PersistentKernelCache(tmp_path)
    assert await cache.get(key, source.fetch) == A
    assert (cache.damaged, len(source.fetched)) == (1, 2)
    assert path.read_bytes() == A


async def test_bytes_with_another_digest_are_never_kept(tmp_path: Path) -> None:
    async def lies(_: str) -> bytes:
        return B

    with pytest.raises(StoreUnavailable, match="was not taken"):
        await PersistentKernelCache(tmp_path).get(digest_of(A), lies)
    assert list(tmp_path.iterdir()) == []


async def test_a_fetch_that_failed_is_tried_again_by_the_next(tmp_path: Path) -> None:
    async def fails(_: str) -> bytes:
        raise StoreUnavailable("the store is away")

    cache, key = PersistentKernelCache(tmp_path), digest_of(A)
    with pytest.raises(StoreUnavailable, match="is away"):
        await cache.get(key, fails)
    assert await cache.get(key, Source(A).fetch) == A


async def test_one_caller_that_is_cancelled_takes_the_kernel_from_no_other(tmp_path: Path) -> None:
    source, cache, key = Source(A), PersistentKernelCache(tmp_path), digest_of(A)
    first, second = (asyncio.ensure_future(cache.get(key, source.fetch)) for _ in range(2))
    await asyncio.sleep(0.001)
    first.cancel()
    assert await second == A
    assert source.fetched == [key]


async def test_files_that_another_process_takes_away_are_fetched_again(tmp_path: Path) -> None:
    source, cache, key = Source(A), PersistentKernelCache(tmp_path), digest_of(A)
    await cache.get(key, source.fetch)
    for path in tmp_path.iterdir():
        os.unlink(path)
    assert await cache.get(key, source.fetch) == A


async def test_only_content_addresses_are_looked_up(tmp_path: Path) -> None:
    with pytest.raises(ContractError):
        await PersistentKernelCache(tmp_path).get("sha256:../../secret", Source(A).fetch)
