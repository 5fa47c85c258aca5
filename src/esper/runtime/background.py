"""The one background thread with its event loop, and the bridge on which training reaches it."""

import asyncio
import atexit
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from esper.errors import DeadlineExceeded, Unavailable

Result = TypeVar("Result")

WAIT_THRESHOLD_S = 0.001
"""A call that blocks training for longer counts as a wait; the goal is none."""


KEPT_FAILURES = 64
"""The latest failures of a run that are kept whole; all are counted."""

PICK_UP_S = 0.02
"""How often the loop looks for work that was handed over; waking it for each piece would cost training a system call, and
with it the interpreter's lock for up to 5 ms."""

CLOSING_S = 2.0
"""How long a loop that ends waits for what tasks began when they were cancelled, such as giving a connection back."""

SHOWN_CALLS = 5
"""Calls of a silent loop's thread that an error tells."""

GLANCE_S = 0.05
"""How often a flush looks whether there was progress."""


class BackgroundLoop:
    """A daemon thread that runs one event loop until it is closed."""

    def __init__(self, name: str = "esper") -> None:
        self._loop = asyncio.new_event_loop()
        self._handed: deque[tuple[Coroutine[Any, Any, Any], Future[Any]]] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._looked_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the loop still takes work."""
        return self._thread.is_alive() and not self._loop.is_closed()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Hand a coroutine over and return at once; it starts within ``PICK_UP_S``.

        Raises:
            Unavailable: If the loop is closed.
        """
        if not self.alive:
            work.close()
            raise Unavailable("the background services are closed", todo="attach again to start them")
        future: Future[Result] = Future()
        self._handed.append((work, future))
        self._turn_away()
        return future

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the loop's thread now."""
        self._loop.call_soon_threadsafe(function)

    def pick_up(self) -> None:
        """Start what was handed over now; for a caller that is about to wait."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._start_handed)

    @property
    def silent_s(self) -> float:
        """Seconds since it last looked for work; more than a few ``PICK_UP_S`` where something holds its thread up."""
        return time.monotonic() - self._looked_at

    @property
    def whereabouts(self) -> str:
        """What its thread is doing, the innermost call first: for a person who asks why it is silent."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        calls = traceback.extract_stack(frame)[: -SHOWN_CALLS - 1 : -1] if frame is not None else []
        return " in ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls) or "nothing"

    def close(self, *, limit_s: float = 10.0) -> None:
        """Cancel what still runs, wait for it up to ``limit_s`` (not on the loop's own thread), and end the thread."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._loop.stop)
            if not self.is_current:
                self._thread.join(limit_s)

    @property
    def is_current(self) -> bool:
        """Whether this is the loop's own thread, as when an object is collected there."""
        return threading.current_thread() is self._thread

    async def end_others(self) -> None:
        """Cancel all that was handed over but the caller's own task, and wait until it has let go of what it held."""
        self._start_handed()
        others = self._tasks - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._look()
        try:
            self._loop.run_forever()
        finally:
            self._drain()
            self._loop.close()
            self._turn_away()

    def _look(self) -> None:
        self._loop.call_later(PICK_UP_S, self._look)
        self._looked_at = time.monotonic()
        self._start_handed()

    def _start_handed(self) -> None:
        while self._handed:
            work, future = self._handed.popleft()
            if not future.set_running_or_notify_cancel():
                work.close()
                continue
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(partial(_settle, future))

    def _turn_away(self) -> None:
        """Refuse what was handed over once nobody looks any more; the loop's thread and a caller may both be at it."""
        while self._handed and not self.alive:
            with suppress(IndexError):  # the other was faster
                work, future = self._handed.popleft()
                work.close()
                future.set_exception(_closed())

    def _drain(self) -> None:
        self._start_handed()
        self._end(asyncio.all_tasks(self._loop))
        left = asyncio.all_tasks(self._loop)  # what closes for those that were cancelled, and was not waited for
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=CLOSING_S))
            self._end(asyncio.all_tasks(self._loop))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _end(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _settle(future: Future[Any], ended: "asyncio.Task[Any]") -> None:
    if ended.cancelled():
        future.set_exception(_closed())
    elif (error := ended.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(ended.result())


def _closed() -> Unavailable:
    return Unavailable("the background services were closed", todo="attach again to start them")


@dataclass
class Waits:
    """How often training was held up.

    Attributes:
        unwanted: Calls that blocked training for over 1 ms.
        deliberate: Waits that the user asked for with ``late="wait"``.
        longest_s: The longest unwanted one.
    """

    unwanted: int = 0
    deliberate: int = 0
    longest_s: float = 0.0


class Bridge:
    """Training's side of the background loop: hand work over, look for results, never wait unasked.

    Args:
        loop: The background loop.
        capacity: Posts that may be in flight; beyond it the newest post is dropped and counted.
    """

    def __init__(self, loop: BackgroundLoop, *, capacity: int = 64) -> None:
        self.waits = Waits()
        self.dropped = 0
        self.failed = 0
        self.failures: deque[BaseException] = deque(maxlen=KEPT_FAILURES)
        self._loop = loop
        self._capacity = capacity
        self._posts: set[Future[Any]] = set()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start work whose result is looked for later."""
        with self.watched():
            return self._loop.submit(work)

    def post(self, work: Coroutine[Any, Any, object], *, droppable: bool = False) -> bool:
        """Start work whose result nobody needs; a failure is kept in ``failures``.

        Args:
            work: The coroutine.
            droppable: Whether it may be dropped, and counted, when too much is in flight.

        Returns:
            Whether the work was started.
        """
        self._posts = {post for post in self._posts if not post.done()}
        if droppable and len(self._posts) >= self._capacity:
            work.close()
            self.dropped += 1
            return False
        future = self.submit(work)
        self._posts.add(future)
        future.add_done_callback(self._keep_failure)
        return True

    def wait(self, future: Future[Result], *, limit_s: float) -> Result:
        """Wait for a result because the user asked for it.

        Raises:
            DeadlineExceeded: If it did not come within ``limit_s``.
        """
        if not future.done():
            self.waits.deliberate += 1
            self._loop.pick_up()
        try:
            return future.result(limit_s)
        except TimeoutError as error:
            if future.done():
                raise
            raise DeadlineExceeded(
                "waiting for the background services", why=f"no answer within {limit_s:g} s", todo="see the run's log"
            ) from error

    def flush(self, *, limit_s: float = 10.0) -> None:
        """Wait until every post has run; used when a run ends or is saved.

        The limit counts time without progress: it begins anew with each post that has run, and a glance counts as long as it
        was meant to last, however late an overloaded or suspended machine lets this thread go on.

        Raises:
            DeadlineExceeded: If none of those that are left ran for ``limit_s``.
        """
        self._loop.pick_up()
        late, left_s = set(self._posts), limit_s
        while late and left_s > 0:
            taken, late = wait(late, min(GLANCE_S, left_s), FIRST_COMPLETED)
            left_s = limit_s if taken else left_s - GLANCE_S
        if late:
            raise DeadlineExceeded(
                "handing over what happened",
                why=f"{len(late)} messages were not taken, and for {limit_s:g} s none was; the background loop last looked "
                f"for work {self._loop.silent_s:.2g} s ago, and its thread is at {self._loop.whereabouts}",
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count what training does inside as a wait where it takes too long, such as writing to a file."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._count(time.perf_counter() - began)

    def _keep_failure(self, post: Future[Any]) -> None:
        if not post.cancelled() and (error := post.exception()) is not None:
            self.failed += 1
            self.failures.append(error)

    def _count(self, seconds: float) -> None:
        if seconds > WAIT_THRESHOLD_S:
            self.waits.unwanted += 1
            self.waits.longest_s = max(self.waits.longest_s, seconds)


_running: dict[Future[Any], Callable[[], None]] = {}
"""What runs in background loops, and how it is closed."""


def close_at_exit(running: Future[Any], close: Callable[[], None]) -> None:
    """Run ``close`` when the interpreter ends, unless ``running`` has ended before."""
    _running[running] = close
    running.add_done_callback(lambda ended: _running.pop(ended, None))


@atexit.register
def _close_all() -> None:
    for close in list(_running.values()):
        close()


__all__ = ["BackgroundLoop", "Bridge", "Waits", "close_at_exit"]
