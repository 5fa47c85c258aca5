"""Waits within one event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Bell:
    """Wakes all who wait for a change.

    Attributes:
        waiting: Is empty where nobody waits, so that the most frequent changes need not ring.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Let everybody who waits look again."""
        if self.waiting:
            waiting, self.waiting = self.waiting, set()
            for one in waiting:
                if not one.done():
                    one.set_result(None)

    async def wait_for(self, holds: Callable[[], bool]) -> None:
        """Return once ``holds`` does; it is asked now, and whenever the bell has rung."""
        while not holds():
            rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.add(rung)
            try:
                await rung
            finally:
                self.waiting.discard(rung)

    async def holds_within(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait as `wait_for` does, but no longer than ``seconds``, and tell whether it holds."""
        try:
            async with asyncio.timeout(seconds):
                await self.wait_for(holds)
        except TimeoutError:
            return holds()
        return True


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer than ``seconds``, and tell whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def uncut(work: Coroutine[Any, Any, Result]) -> Result:
    """Run work to its end, even where the caller is cancelled meanwhile: a write that is cut short may keep its lock."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody is left to hear of it
        raise
