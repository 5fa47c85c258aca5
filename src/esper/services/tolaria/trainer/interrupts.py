"""Ctrl-C and SIGTERM during a training: it ends after a whole step, in every process; a second one ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from esper.services.tolaria.trainer.loop import Halt, Halted

HANDLED = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""Signals that end a training, each where its handler is still Python's own."""


@contextmanager
def stoppable(halt: Halt) -> Iterator[None]:
    """Turn the first signal into ``halt``, and what then ends the block into what the signal means.

    Signals reach the main thread alone, and a handler that the application set itself stays.

    Raises:
        KeyboardInterrupt: After a SIGINT, here or in another process.
        SystemExit: After a SIGTERM, with the exit code that shells give it.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in HANDLED}
    mine = [number for number, usual in HANDLED.items() if main and before[number] is usual]

    def ask(number: int, _frame: FrameType | None) -> None:
        halt.ask(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in mine:
            signal.signal(number, ask)
        yield
    except Halted as halted:
        if halted.number == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None
    finally:
        for number in mine:
            signal.signal(number, before[number])
