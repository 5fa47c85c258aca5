"""Looks at a bus from outside now and then, so that what waits for each group can be measured."""

import asyncio
from typing import Self

from esper.errors import EsperError
from esper.runtime.waits import is_set_within
from esper.services.oona.desk import Desk
from esper.telemetry.bus_metrics import BusSource, BusTimes, Tally, Waiting
from esper.telemetry.logs import get_logger

_log = get_logger("oona.watch")


class FiguresWatch:
    """Implements `esper.telemetry.bus_metrics.BusSource` for every stream and group of a bus, this process's or not.

    ```python
    async with RedisBus(config) as bus, FiguresWatch(RedisDesk(config), bus) as watch:
        registry.register(BusCollector({"shared": watch}))
    ```

    While the bus does not answer it knows nothing, and says nothing: what it knew before may be wrong by then.

    Args:
        desk: Where to look; it is closed at the end.
        bus: This process's own part in that bus: what it has done and measured is given along. Without it, nothing is.
        every_s: Seconds between two looks. On Redis one look costs a few commands per stream and group.

    Attributes:
        times: Those of ``bus``.
        outages: How often the bus did not answer.
    """

    def __init__(self, desk: Desk, bus: BusSource | None = None, *, every_s: float = 5.0) -> None:
        self.times = BusTimes() if bus is None else bus.times
        self._bus = bus
        self.outages = 0
        self._desk, self._every_s = desk, every_s
        self._waiting: list[Waiting] = []
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run(), name="oona-watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

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
        if self._task is not None:
            await self._task

    def tallies(self) -> list[Tally]:
        """Return what this process has done; what others did is known to them."""
        return [] if self._bus is None else self._bus.tallies()

    def waiting(self) -> list[Waiting]:
        """Return what waited for each group at the last look."""
        return self._waiting

    async def _look(self) -> None:
        try:
            figures = await self._desk.figures()
        except EsperError as error:  # also where this user may not look: nobody's work ends for want of figures
            self.outages += 1
            self._waiting = []
            _log.warning("bus_not_seen", why=str(error))
            return
        self._waiting = [
            Waiting(stream.stream, group.group, group.lag, group.depth) for stream in figures for group in stream.groups
        ]
