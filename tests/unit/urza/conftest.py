from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def library(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[KernelManager]:
    """A library on a real database, once for each that it runs on."""
    async with await KernelManager.at(database_url, LocalBlobs(tmp_path / "blobs"), clock=clock) as manager:
        yield manager
