"""The laws of the library and its queue, asked over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from esper.ports import BlobStore
from esper.services.clients import UrzaClient
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.s3_blobs import S3Blobs, S3Config
from esper.testing.clock import ManualClock
from esper.testing.library_contract import LibraryContract
from esper.testing.s3 import S3Server
from esper.testing.store_server import served


class _OverHttp(LibraryContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def blobs(self, tmp_path: Path) -> BlobStore:
        return LocalBlobs(tmp_path / "blobs")

    @pytest.fixture
    async def library(self, url: str, blobs: BlobStore, clock: ManualClock) -> AsyncIterator[UrzaClient]:
        async with (
            await KernelManager.at(url, blobs, clock=clock) as manager,
            served(manager) as address,
            UrzaClient(address) as client,
        ):
            yield client


class TestOnSqlite(_OverHttp):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'library.db'}"


@pytest.mark.slow
class TestOnPostgresAndS3(_OverHttp):
    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        return postgres_url

    @pytest.fixture
    def blobs(self, s3_server: S3Server) -> BlobStore:
        secret = SecretStr("testing")
        bucket = s3_server.new_bucket()
        config = S3Config(bucket=bucket, endpoint=s3_server.url, access_key_id="testing", secret_access_key=secret)
        return S3Blobs(config)
