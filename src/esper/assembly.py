"""The composition root: wires the parts of one process, and is the only place that knows them all."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esper.ports import Advisor, Library, MessageBus

if TYPE_CHECKING:
    pass

START_LIMIT_S = 60.0


@dataclass(frozen=True)
class Embedded:
    """One process's services, running.

    Attributes:
        bus: In-process messages.
        library: The artifact store in a local folder.
        advisor: The controller.
    """

    bus: MessageBus
    library: Library
    advisor: Advisor


@asynccontextmanager
async def embedded(
    root: str | os.PathLike[str], advisor: Advisor, *, forge_workers: int = 1, extensions: Sequence[str] = ()
) -> AsyncIterator[Embedded]:
    """Run bus, store, forge, analyzer and collectors in this event loop until the block ends.

    Args:
        root: Folder for everything that is written.
        advisor: The controller.
        forge_workers: Child processes that compile.
        extensions: Modules with custom ops that the children import.

    Raises:
        StoreUnavailable: If the folder cannot be written.
    """
    from esper.services.oona.memory_bus import MemoryBus
    from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
    from esper.services.urza.kernel_manager import KernelManager
    from esper.services.urza.outbox import OutboxRelay

    bus = MemoryBus()
    async with await KernelManager.open(Path(root) / "library") as library:
        worker = TezzeretWorker(
            WorkerConfig(num_workers=forge_workers, extensions=tuple(extensions)), queue=library, bus=bus
        )
        relay = OutboxRelay(library, bus)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            tasks.create_task(relay.run())
            yield Embedded(bus, library, advisor)
            await worker.close()
            await relay.close()
            await bus.close()
