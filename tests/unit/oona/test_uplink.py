"""What is said in one process is told on the bus that others are on."""

import asyncio

import pytest

from esper.contracts.events import CompilationEvent
from esper.contracts.ids import MessageId
from esper.contracts.topics import COMPILATIONS, Message
from esper.errors import BusUnavailable
from esper.services.oona import uplink
from esper.services.oona.memory_bus import MemoryBus
from esper.services.oona.uplink import Uplink
from esper.testing.bus_readers import Reader, Reading

EVENT = CompilationEvent(blueprint_id="sha256:0", status="started")


class Unsteady(MemoryBus):
    """A bus that is gone for its first calls."""

    def __init__(self, outages: int) -> None:
        super().__init__()
        self.outages = outages

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        if self.outages:
            self.outages -= 1
            raise BusUnavailable("planted outage")
        return await super().publish(stream, message, run_id=run_id, message_id=message_id)


@pytest.mark.parametrize("outages", [0, 5])
async def test_messages_are_carried_in_order_under_their_ids_also_after_an_outage(
    outages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "_PAUSE_S", 0.001)
    reader = Reader()
    async with MemoryBus() as bus, Unsteady(outages) as shared:
        lift = Uplink(bus, shared)
        sent = [await bus.publish(COMPILATIONS.stream, EVENT, run_id="run-1") for _ in range(3)]
        await bus.publish("of.this.process.only", {"n": 1})
        running = asyncio.ensure_future(lift.run())
        async with Reading(shared, reader, stream=COMPILATIONS.stream):
            found = await reader.wait_for(3)
            await bus.close()
            await running
        assert [delivery.id for delivery in found] == sent
        assert [(delivery.body, delivery.run_id) for delivery in found] == [(EVENT, "run-1")] * 3
        assert (lift.carried, lift.outages) == (3, outages)
        assert "of.this.process.only" not in shared.counts()
