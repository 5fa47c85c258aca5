"""Places at which children work, some of which are lent where a job does not come to an end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LONG_S = 1.0
"""A build of the catalogue takes a twentieth of a second; what takes a second may well take until its deadline."""


class _Stay:
    """A job at a place, which is its own until it is lent."""

    lent = False


class Places:
    """So many jobs at a time; one that stays long lends its place to the next, so that what hangs holds nobody up.

    Args:
        own: Jobs at a time.
        spare: How many of those that stay long do not count, at a time.
        long_s: From when on a job stays long.
    """

    def __init__(self, own: int, *, spare: int = 0, long_s: float = LONG_S) -> None:
        self._free, self._spare, self._long_s = asyncio.Semaphore(own), spare, long_s
        self._long: list[_Stay] = []

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for a place, and have it until the block ends."""
        await self._free.acquire()
        stay = _Stay()
        timer = asyncio.get_running_loop().call_later(self._long_s, self._stays_long, stay)
        try:
            yield
        finally:
            timer.cancel()
            if stay.lent:
                self._spare += 1
            else:
                self._free.release()
            if stay in self._long:
                self._long.remove(stay)
            self._lend()

    def _stays_long(self, stay: _Stay) -> None:
        self._long.append(stay)
        self._lend()

    def _lend(self) -> None:
        for stay in self._long:
            if not stay.lent and self._spare:
                self._spare -= 1
                stay.lent = True
                self._free.release()


__all__ = ["LONG_S", "Places"]
