"""What every blob store must do, as a suite that any implementation can run; subclasses give a fixture ``blobs``."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

from esper.errors import ContractError, NotFound, StoreUnavailable
from esper.ir import digest_of
from esper.ports import BlobStore


class BlobContract:
    """The laws of `esper.ports.BlobStore`, one test each."""

    async def test_what_was_put_can_be_read_under_its_digest(self, blobs: BlobStore) -> None:
        for data in (b"", b"\x00", b"kernel" * 10_000):
            digest = await blobs.put(data)
            assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert await blobs.get(digest) == data

    async def test_equal_bytes_may_be_put_again_and_at_once(self, blobs: BlobStore) -> None:
        digests = await asyncio.gather(*(blobs.put(b"same" * 50_000) for _ in range(8)))
        assert len(set(digests)) == 1
        assert await blobs.get(digests[0]) == b"same" * 50_000

    async def test_an_unknown_digest_is_not_found(self, blobs: BlobStore) -> None:
        try:
            await blobs.get("sha256:" + "0" * 64)
        except NotFound as error:
            assert error.todo
        else:
            raise AssertionError("bytes were found that nobody put")

    async def test_a_stream_is_stored_and_read_whole_and_in_ranges(self, blobs: BlobStore) -> None:
        for data in (b"", bytes(range(256)) * 12_000):
            digest = digest_of(data)
            await blobs.put_stream(digest, len(data), _pieces(data))
            assert await blobs.size(digest) == len(data)
            assert b"".join([chunk async for chunk in blobs.stream(digest)]) == data
            for start, stop in ((0, 10), (1_048_570, 1_048_590), (len(data) - 3, None), (5, 5), (7, 10**9)):
                if 0 <= start <= len(data):
                    assert b"".join([chunk async for chunk in blobs.stream(digest, start, stop)]) == data[start:stop]

    async def test_a_stream_that_is_not_what_it_says_leaves_nothing(self, blobs: BlobStore) -> None:
        data = b"kernel" * 400_000
        other = digest_of(b"something else")
        for digest, size in ((other, len(data)), (digest_of(data), len(data) - 1), (digest_of(data), len(data) + 1)):
            try:
                await blobs.put_stream(digest, size, _pieces(data))
            except ContractError as error:
                assert error.code == "ESP-3210"
            else:
                raise AssertionError("bytes were stored under a false name")
            assert not await _held(blobs, digest)

    async def test_a_stream_that_breaks_off_leaves_nothing(self, blobs: BlobStore) -> None:
        data = b"kernel" * 400_000

        async def broken() -> AsyncIterator[bytes]:
            yield data[:2_000_000]
            raise ConnectionResetError("the sender went away")

        try:
            await blobs.put_stream(digest_of(data), len(data), broken())
        except (ConnectionResetError, StoreUnavailable):
            pass
        else:
            raise AssertionError("half of the bytes were taken for all")
        assert not await _held(blobs, digest_of(data))
        await blobs.put_stream(digest_of(data), len(data), _pieces(data))
        assert await blobs.get(digest_of(data)) == data

    async def test_a_range_outside_of_the_bytes_is_refused(self, blobs: BlobStore) -> None:
        digest = await blobs.put(b"ten bytes!")
        for start, stop in ((-1, 3), (11, None), (5, 2)):
            try:
                [chunk async for chunk in blobs.stream(digest, start, stop)]
            except ContractError as error:
                assert "10 bytes" in error.why
            else:
                raise AssertionError(f"{start} to {stop} was read")

    async def test_what_is_held_can_be_listed_and_removed(self, blobs: BlobStore) -> None:
        digests = {await blobs.put(bytes([n]) * 100) for n in range(5)}
        found = [entry async for entry in blobs.entries()]
        assert {entry.digest for entry in found} == digests
        assert {entry.size_bytes for entry in found} == {100}
        assert all(entry.stored_at > 1.5e9 for entry in found)
        gone = digests.pop()
        for _ in range(2):
            await blobs.delete(gone)
        assert {entry.digest async for entry in blobs.entries()} == digests
        assert not await _held(blobs, gone)

    async def test_only_content_addresses_are_looked_up(self, blobs: BlobStore) -> None:
        for wrong in ("", "sha256:../../etc/passwd", "md5:00", "sha256:" + "G" * 64):
            try:
                await blobs.get(wrong)
            except ContractError as error:
                assert error.why or error.todo
            else:
                raise AssertionError(f"{wrong!r} was looked up")


async def _pieces(data: bytes, length: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), length):
        yield data[start : start + length]


async def _held(blobs: BlobStore, digest: str) -> bool:
    try:
        await blobs.size(digest)
    except NotFound:
        return False
    return True
