"""What every blob store must do, as a suite that any implementation can run; subclasses give a fixture ``blobs``."""

import asyncio
import hashlib

from esper.errors import ContractError, NotFound
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

    async def test_only_content_addresses_are_looked_up(self, blobs: BlobStore) -> None:
        for wrong in ("", "sha256:../../etc/passwd", "md5:00", "sha256:" + "G" * 64):
            try:
                await blobs.get(wrong)
            except ContractError as error:
                assert error.why or error.todo
            else:
                raise AssertionError(f"{wrong!r} was looked up")
