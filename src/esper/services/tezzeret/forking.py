"""One process for each job: whatever a job leaves behind in memory ends with it.

The child that forks has imported torch and has never run an operation: forking after autograd has started its threads hangs.
"""

import os
import signal
from collections.abc import Callable

import msgspec

from esper.runtime.pipe import Pipe, die_with_parent
from esper.services.tezzeret.orders import Died, Reply


def answer_in_fork(pipe: Pipe, work: Callable[[], Reply]) -> None:
    """Do a job in a fork of this process, which answers by itself; where it dies, say how.

    Args:
        pipe: To the parent of both.
        work: Returns the reply.
    """
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        pipe.send(msgspec.msgpack.encode(work()))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        pipe.send(msgspec.msgpack.encode(Died(how=_described(status))))


def _described(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
