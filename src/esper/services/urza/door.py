"""Where those wait who hand something in, so that they do not stand in the line of those who write."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count
from typing import TypeAlias

from esper.ports import Clock
from esper.services.urza.queueing import AGEING_S

_Waiting: TypeAlias = "tuple[float, int, asyncio.Future[None]]"


class Door:
    """Lets some in at a time, and those who wait in the order in which their builds will be served.

    Args:
        at_once: How many may be inside.
        clock: Tells who came when.
    """

    def __init__(self, at_once: int, clock: Clock) -> None:
        self._places, self._clock = at_once, clock
        self._waiting: list[_Waiting] = []
        self._number = count()

    @asynccontextmanager
    async def passed(self, priority: int) -> AsyncIterator[None]:
        """Wait until it is one's turn, and be inside until the block ends."""
        if self._places:
            self._places -= 1
        else:
            await self._turn(priority)
        try:
            yield
        finally:
            self._next()

    async def _turn(self, priority: int) -> None:
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (self._clock.now_s() - priority * AGEING_S, next(self._number), let_in))
        try:
            await let_in
        except asyncio.CancelledError:
            if not let_in.cancelled():  # it was let in at this very moment
                self._next()
            raise

    def _next(self) -> None:
        while self._waiting:
            _, _, let_in = heappop(self._waiting)
            if not let_in.done():
                let_in.set_result(None)
                return
        self._places += 1
