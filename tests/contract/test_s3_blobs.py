import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from esper.errors import StoreUnavailable
from esper.services.urza.digests import address_of
from esper.services.urza.s3_blobs import S3Blobs, S3Config
from esper.testing.blob_contract import BlobContract
from esper.testing.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3FolderServer, S3Server


def fetched(request: str) -> bytes:
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: bytes = answer.read()
    return found


def config(server: S3Server | S3FolderServer) -> S3Config:
    return S3Config.model_validate({
        "bucket": server.new_bucket(), "endpoint": server.url, "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": SECRET_ACCESS_KEY,
    })  # fmt: skip


@pytest.fixture
def blobs(s3_server: S3Server) -> S3Blobs:
    return S3Blobs(config(s3_server))


class TestS3Blobs(BlobContract):
    pass


@pytest.fixture
def folder_server(tmp_path: Path) -> Iterator[S3FolderServer]:
    with S3FolderServer(tmp_path) as server:
        yield server


@pytest.mark.slow
class TestS3BlobsAsFiles(BlobContract):
    @pytest.fixture
    def blobs(self, folder_server: S3FolderServer) -> S3Blobs:
        return S3Blobs(config(folder_server))


async def test_putting_sound_bytes_again_heals_damaged_ones_of_the_same_length(s3_server: S3Server) -> None:
    given = config(s3_server)
    blobs = S3Blobs(given)
    digest = await blobs.put(b"sound")
    bucket = S3Store(
        given.bucket, endpoint=given.endpoint, client_options={"allow_http": True}, access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET_ACCESS_KEY, region=given.region,
    )  # fmt: skip
    await obstore.put_async(bucket, address_of(digest), b"sOund", mode="overwrite")
    with pytest.raises(StoreUnavailable, match="damaged"):
        await blobs.get(digest)
    assert await blobs.put(b"sound") == digest
    assert await blobs.get(digest) == b"sound"


async def test_what_a_server_of_files_acknowledged_is_there_after_a_kill(folder_server: S3FolderServer) -> None:
    blobs = S3Blobs(config(folder_server))
    digest = await blobs.put(b"kept")
    folder_server.kill()
    folder_server.start()
    assert await blobs.get(digest) == b"kept"


async def test_a_link_gives_the_bytes_to_whoever_has_it(blobs: S3Blobs, s3_server: S3Server) -> None:
    link = await blobs.link(await blobs.put(b"shared"), expires_s=60)
    assert link is not None
    assert link.startswith(s3_server.url)
    assert await asyncio.to_thread(fetched, link) == b"shared"


async def test_bytes_that_were_changed_in_the_bucket_are_never_handed_out(s3_server: S3Server) -> None:
    settings = config(s3_server)
    blobs = S3Blobs(settings)
    digest = await blobs.put(b"sound" * 500_000)
    name = digest.removeprefix("sha256:")
    raw = S3Store(
        settings.bucket, endpoint=s3_server.url, access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET_ACCESS_KEY,
        region="us-east-1", client_options={"allow_http": True},
    )  # fmt: skip
    await obstore.put_async(raw, f"sha256/{name[:2]}/{name}", b"sOund" * 500_000)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await blobs.get(digest)
    received: list[bytes] = []

    async def receive() -> None:
        async for chunk in blobs.stream(digest):
            received.append(chunk)

    with pytest.raises(StoreUnavailable, match="damaged"):
        await receive()
    assert 0 < len(b"".join(received)) < 2_500_000


async def test_a_bucket_that_does_not_answer_is_unavailable(s3_server: S3Server) -> None:
    away = S3Blobs(config(s3_server).model_copy(update={"endpoint": "http://127.0.0.1:9", "retry_s": 0.1}))
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await away.put(b"bytes")


def test_a_secret_is_not_shown(s3_server: S3Server) -> None:
    assert "'testing'" not in repr(config(s3_server)).replace("access_key_id='testing'", "")
