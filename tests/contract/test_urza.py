"""The laws of the library and its queue: in process and over HTTP, on both databases, with bytes in a folder and in a bucket."""

from collections.abc import AsyncIterator
from itertools import product
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
from esper.testing.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from esper.testing.store_contract import StoreContract
from esper.testing.store_server import served

FAST = (
    ("in process", "sqlite", "folder"), ("in process", "postgresql", "folder"), ("over http", "sqlite", "folder"),
)  # fmt: skip
STORES = [
    pytest.param(*store, id=" on ".join(store), marks=() if store in FAST else pytest.mark.slow)
    for store in product(("in process", "over http"), ("sqlite", "postgresql"), ("folder", "s3"))
]


@pytest.mark.parametrize(("way", "database", "bytes_in"), STORES)
class TestUrza(LibraryContract, StoreContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest, database: str, tmp_path: Path) -> str:
        if database == "sqlite":
            return f"sqlite:///{tmp_path / 'library.db'}"
        return str(request.getfixturevalue("postgres_url"))

    @pytest.fixture
    def blobs(self, request: pytest.FixtureRequest, bytes_in: str, tmp_path: Path) -> BlobStore:
        if bytes_in == "folder":
            return LocalBlobs(tmp_path / "blobs")
        server: S3Server = request.getfixturevalue("s3_server")
        return S3Blobs(
            S3Config(
                bucket=server.new_bucket(),
                endpoint=server.url,
                access_key_id=ACCESS_KEY_ID,
                secret_access_key=SecretStr(SECRET_ACCESS_KEY),
            )
        )

    @pytest.fixture
    async def library(
        self, way: str, url: str, blobs: BlobStore, clock: ManualClock
    ) -> AsyncIterator[KernelManager | UrzaClient]:
        async with await KernelManager.at(url, blobs, clock=clock) as manager:
            if way == "in process":
                yield manager
                return
            async with served(manager) as address, UrzaClient(address) as client:
                yield client
