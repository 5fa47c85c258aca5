"""Grafts that another thread asked for: they wait for the training thread, between two of its steps."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from esper.errors import Unavailable


class Handover:
    """Runs what is asked for on the thread that trains; at once where no other thread does."""

    def __init__(self) -> None:
        self._trainer: int | None = None
        self._wanted: deque[tuple[Callable[[], object], Future[None]]] = deque()

    def take(self) -> None:
        """Do what was asked for since the last step; called on the training thread after each step."""
        self._trainer = threading.get_ident()
        while self._wanted:
            act, done = self._wanted.popleft()
            try:
                act()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def ask(self, act: Callable[[], object]) -> Future[None]:
        """Return a future that ends when ``act`` was run."""
        done: Future[None] = Future()
        self._wanted.append((act, done))
        if self._trainer in (None, threading.get_ident()):
            trainer = self._trainer
            self.take()
            self._trainer = trainer
        return done

    def close(self) -> None:
        """Refuse what still waits."""
        while self._wanted:
            _, done = self._wanted.popleft()
            done.set_exception(Unavailable("the run is closed", todo="attach again"))
