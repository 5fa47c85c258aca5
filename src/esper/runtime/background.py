"""The one background thread with its event loop, and the bridge on which training reaches it."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from esper.errors import DeadlineExceeded, EsperError, Unavailable

Result = TypeVar("Result")

WAIT_THRESHOLD_S = 0.001
"""A call that blocks training for longer counts as a wait (DESIGN.md, "Training never waits")."""


class BackgroundLoop:
    """A daemon thread that runs one event loop until it is closed."""

    def __init__(self, name: str = "esper") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the loop still takes work."""
        return self._thread.is_alive() and not self._loop.is_closed()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start a coroutine on the loop and return at once.

        Raises:
            Unavailable: If the loop is closed.
        """
        if not self.alive:
            work.close()
            raise Unavailable("the background services are closed", todo="attach again to start them")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the loop's thread soon."""
        self._loop.call_soon_threadsafe(function)

    def close(self, *, limit_s: float = 10.0) -> None:
        """Cancel what still runs, wait for it up to ``limit_s``, and end the thread."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(limit_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._drain()
            self._loop.close()

    def _drain(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())


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
        self.failures: list[BaseException] = []
        self._loop = loop
        self._capacity = capacity
        self._posts: set[Future[Any]] = set()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start work whose result is looked for later."""
        began = time.perf_counter()
        future = self._loop.submit(work)
        self._count(time.perf_counter() - began)
        return future

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

        Raises:
            DeadlineExceeded: If one did not within ``limit_s``.
        """
        late = wait(self._posts, limit_s).not_done
        if late:
            raise DeadlineExceeded(
                "handing over what happened", why=f"{len(late)} messages were not taken within {limit_s:g} s"
            )

    def _keep_failure(self, post: Future[Any]) -> None:
        if not post.cancelled() and (error := post.exception()) is not None:
            self.failures.append(error)

    def _count(self, seconds: float) -> None:
        if seconds > WAIT_THRESHOLD_S:
            self.waits.unwanted += 1
            self.waits.longest_s = max(self.waits.longest_s, seconds)


def result_of(future: Future[Result]) -> Result | EsperError | None:
    """Return a finished future's result, its Esper error, or None where it was cancelled or still runs."""
    if not future.done():
        return None
    try:
        return future.result()
    except EsperError as error:
        return error
    except CancelledError:
        return None


def close_at_exit(owner: object, close: Callable[[], None]) -> Callable[[], None]:
    """Run ``close`` once: when it is called, when ``owner`` is collected, or when the interpreter ends.

    ``close`` must not refer to ``owner``.
    """
    finalizer = weakref.finalize(owner, close)
    finalizer.atexit = True
    return finalizer


__all__ = ["BackgroundLoop", "Bridge", "Waits", "close_at_exit", "result_of"]
