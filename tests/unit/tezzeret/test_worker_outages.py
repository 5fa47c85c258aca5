"""A forge outlives every kind of outage of its store."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from esper.contracts.kernel import CompileJob
from esper.errors import CircuitOpen, DeadlineExceeded, StoreUnavailable, Unavailable
from esper.services.tezzeret.assignment import Ending
from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, request_for


class Away(KernelManager):
    """A real library that does not answer the first two times that it is asked for a job, nor when it is told of an end."""

    away: type[Unavailable]
    asked: Counter[str]

    async def claim(self, worker: str, *, lease_s: float, finishing: bool = True) -> CompileJob | None:
        self._answering("claim")
        return await super().claim(worker, lease_s=lease_s, finishing=finishing)

    async def fail(self, *given: object, **named: object) -> object:  # type: ignore[override]
        self._answering("fail")
        return await super().fail(*given, **named)  # type: ignore[arg-type]

    def _answering(self, call: str) -> None:
        self.asked[call] += 1
        if self.asked[call] <= 2:
            raise self.away("the store is away")


@pytest.mark.parametrize("away", [StoreUnavailable, CircuitOpen, DeadlineExceeded])
async def test_whatever_the_outage_is_called_the_forge_goes_on_afterwards(
    tmp_path: Path, away: type[Unavailable]
) -> None:
    async with await Away.open(tmp_path / "library") as library:
        library.away, library.asked = away, Counter()
        too_large = request_for(adapter(4096, 4096))
        await library.submit(too_large)
        worker = TezzeretWorker(WorkerConfig(poll_s=0.02, quiet_s=0.02), queue=library)
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(20):
            while not worker.endings:  # noqa: ASYNC110 - a worker tells nobody
                await asyncio.sleep(0.02)
        await worker.close()
        await running
        assert worker.endings == {Ending.REJECTED: 1}
        assert worker.outages >= 4
