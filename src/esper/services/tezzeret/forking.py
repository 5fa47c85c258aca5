"""One process for each job: whatever a job leaves behind in memory ends with it.

The child that forks has imported torch and has never run an operation: forking after autograd has started its threads hangs.
"""

import os
import signal
from collections.abc import Callable

import msgspec

from esper.runtime.pipe import Pipe, die_with_parent
from esper.services.tezzeret.orders import Died, Reply


def answer_in_fork(pipe: Pipe, work: Callable[[], Reply], *, deadline_s: float) -> None:
    """Do a job in a fork of this process, which answers by itself; where it dies, say how.

    Args:
        pipe: To the parent of both.
        work: Returns the reply.
        deadline_s: After which the fork is ended by a timer of its own, so that a job that hangs costs its process alone.
    """
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        pipe.send(msgspec.msgpack.encode(work()))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        pipe.send(msgspec.msgpack.encode(Died(how=_described(status, deadline_s))))


def _described(status: int, deadline_s: float) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return f"it took longer than {deadline_s:g} s"
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
