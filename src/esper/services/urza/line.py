"""Builds that wait hear again where they stand, when that has changed."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

from sqlalchemy.orm import Session

from esper.contracts.events import CompilationEvent
from esper.contracts.topics import COMPILATIONS
from esper.errors import Conflict, StoreUnavailable
from esper.ports import Clock
from esper.services.urza.database import Database
from esper.services.urza.outbox import Outbox
from esper.services.urza.queueing import LONGEST_LINE, Pace, Turn

EVERY_S = 1.0
"""A build hears of its place once in so long at most."""
LOOKS_S = 5.0
"""How often to look whether what is at work takes longer than was foretold."""
_WORTH = 0.1
"""Share of its place by which a build must have moved, and by a place at least."""
_LATE = 0.25
"""Share of the wait that was foretold by which it may be wrong, beside a second."""


@dataclass(frozen=True)
class _Told:
    """What a build was told last.

    Attributes:
        position: Its place.
        due_s: When its kernel was to be expected, or None.
    """

    position: int
    due_s: float | None

    def is_outdated(self, turn: Turn, now_s: float) -> bool:
        """Say whether it is worth telling again."""
        if abs(turn.position - self.position) >= max(1.0, _WORTH * self.position):
            return True
        if self.due_s is None or turn.wait_s is None:
            return self.due_s is not turn.wait_s
        return abs(now_s + turn.wait_s - self.due_s) > max(1.0, _LATE * turn.wait_s)


class Line:
    """The queue as those see it who wait in it.

    Each process of the store tells what moved by its own doing; what it tells goes through the outbox. A place that changes while
    another process serves the queue may be told by both.

    ```python
    async with manager.line:
        ...
    ```

    Args:
        database: Where the queue is.
        outbox: Announces places.
        clock: Tells when.
        every_s: How long a build is left in peace.
    """

    def __init__(self, database: Database, outbox: Outbox, clock: Clock, *, every_s: float = EVERY_S) -> None:
        self._database, self._outbox, self._clock, self._every_s = database, outbox, clock, every_s
        self._pace = Pace(clock)
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._moved, self._closing = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def joined(self, job_id: str, turn: Turn) -> None:
        """Note what a build was told when it was queued."""
        self._told[job_id] = self._as_told(turn)
        if len(self._told) > LONGEST_LINE:  # nobody tells, or too many wait to be told
            self._told.popitem(last=False)

    def moved(self) -> None:
        """Say that places may have changed."""
        self._moved.set()

    async def tell(self) -> int:
        """Tell every build in the line whose place or time is not what it was told last.

        Returns:
            How many there were.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        before = dict(self._told)

        def told(session: Session) -> tuple[dict[str, _Told], set[str]]:
            waiting = self._pace.line(session)
            now_s = self._clock.now_s()
            outdated = [
                one for one in waiting
                if (last := before.get(one.job_id)) is None or last.is_outdated(one.turn, now_s)
            ]  # fmt: skip
            events = [
                CompilationEvent(
                    blueprint_id=one.blueprint_id,
                    status="queued",
                    queue_position=one.turn.position,
                    eta_s=one.turn.wait_s,
                )
                for one in outdated
            ]
            if events:
                self._outbox.write(session, *((COMPILATIONS.stream, event) for event in events))
            return {one.job_id: self._as_told(one.turn) for one in outdated}, {one.job_id for one in waiting}

        fresh, waiting = await self._database.apply(told)
        for gone in before.keys() - waiting:
            self._told.pop(gone, None)
        self._told |= fresh
        return len(fresh)

    async def run(self) -> None:
        """Tell, whenever something moved and now and then while builds wait, until `close` is called."""
        while not self._closing.is_set():
            await self._wait(self._moved, LOOKS_S if self._told else None)
            self._moved.clear()
            if self._closing.is_set():
                return
            try:
                await self.tell()
            except (Conflict, StoreUnavailable):
                self._moved.set()
            await self._wait(self._closing, self._every_s)

    async def close(self) -> None:
        """End."""
        self._closing.set()
        self._moved.set()
        if self._task is not None:
            await self._task

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _as_told(self, turn: Turn) -> _Told:
        return _Told(turn.position, None if turn.wait_s is None else self._clock.now_s() + turn.wait_s)

    async def _wait(self, event: asyncio.Event, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
