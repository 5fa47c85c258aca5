from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus
from esper.testing.bus_contract import BusContract


class TestMemoryBus(BusContract):
    @pytest.fixture
    async def bus(self) -> AsyncIterator[MemoryBus]:
        async with MemoryBus() as bus:
            yield bus


class TestJournaledBus(BusContract):
    @pytest.fixture
    async def bus(self, tmp_path: Path) -> AsyncIterator[MemoryBus]:
        async with MemoryBus(journal=Journal(tmp_path / "bus.journal")) as bus:
            yield bus
