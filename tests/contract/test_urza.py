from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.clock import ManualClock
from esper.testing.library_contract import LibraryContract


class TestKernelManager(LibraryContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def library(self, database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[KernelManager]:
        async with await KernelManager.at(database_url, LocalBlobs(tmp_path / "blobs"), clock=clock) as manager:
            yield manager
