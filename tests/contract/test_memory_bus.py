from collections.abc import AsyncIterator

import pytest

from esper.services.oona.memory_bus import MemoryBus
from esper.testing.bus_contract import BusContract


class TestMemoryBus(BusContract):
    @pytest.fixture
    async def bus(self) -> AsyncIterator[MemoryBus]:
        async with MemoryBus() as bus:
            yield bus
