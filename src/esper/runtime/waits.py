"""Waits within one event loop."""

import asyncio
from collections.abc import Callable


class Bell:
    """Wakes all who wait for a change; to ring it where nobody waits costs next to nothing."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Let everybody who waits look again."""
        if self._waiting:
            waiting, self._waiting = self._waiting, set()
            for one in waiting:
                if not one.done():
                    one.set_result(None)

    async def wait_for(self, holds: Callable[[], bool]) -> None:
        """Return once ``holds`` does; it is asked now, and whenever the bell has rung."""
        while not holds():
            rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(rung)
            try:
                await rung
            finally:
                self._waiting.discard(rung)


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer than ``seconds``, and tell whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
