"""Ctrl-C during a training: it ends after a whole step; a second one ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from esper.services.tolaria.trainer.loop import Halted


@contextmanager
def stoppable(halt: threading.Event) -> Iterator[None]:
    """Turn the first SIGINT into ``halt``, and what then ends the block into a KeyboardInterrupt.

    Signals reach the main thread alone, and a handler that the application set itself stays.
    """
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    mine = mine and before is signal.default_int_handler

    def ask(_number: int, _frame: FrameType | None) -> None:
        halt.set()
        signal.signal(signal.SIGINT, before)

    try:
        if mine:
            signal.signal(signal.SIGINT, ask)
        yield
    except Halted:
        raise KeyboardInterrupt from None
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)
