from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.services.urza.kernel_manager import KernelManager
from esper.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def library(tmp_path: Path, clock: ManualClock) -> AsyncIterator[KernelManager]:
    """A library on a real SQLite file."""
    async with await KernelManager.open(tmp_path / "library", clock=clock) as manager:
        yield manager
