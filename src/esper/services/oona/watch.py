"""Looks at a bus from outside now and then, so that what waits for each group can be measured."""

import asyncio

from esper.errors import Unavailable
from esper.runtime.waits import is_set_within
from esper.services.oona.desk import Desk
from esper.telemetry.bus_metrics import BusTimes, Tally, Waiting
from esper.telemetry.logs import get_logger

_log = get_logger("oona.watch")


class FiguresWatch:
    """Implements `esper.telemetry.bus_metrics.BusSource` for every stream and group of a bus, this process's or not.

    While the bus does not answer it knows nothing, and says nothing: what it knew before may be wrong by then.

    Args:
        desk: Where to look; it is closed at the end.
        every_s: Seconds between two looks. On Redis one look costs a few commands per stream and group.

    Attributes:
        times: None were measured.
        outages: How often the bus did not answer.
    """

    def __init__(self, desk: Desk, *, every_s: float = 5.0) -> None:
        self.times = BusTimes()
        self.outages = 0
        self._desk, self._every_s = desk, every_s
        self._waiting: list[Waiting] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Look until ``close`` is called."""
        try:
            while not self._stop.is_set():
                await self._look()
                await is_set_within(self._stop, self._every_s)
        finally:
            await self._desk.close()

    async def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def tallies(self) -> list[Tally]:
        """Return nothing: who has done what is known to the processes that did it."""
        return []

    def waiting(self) -> list[Waiting]:
        """Return what waited for each group at the last look."""
        return self._waiting

    async def _look(self) -> None:
        try:
            figures = await self._desk.figures()
        except Unavailable as error:
            self.outages += 1
            self._waiting = []
            _log.warning("bus_not_seen", why=str(error))
            return
        self._waiting = [
            Waiting(stream.stream, group.group, group.lag, group.depth) for stream in figures for group in stream.groups
        ]
