"""The forge's child process: ``python -m esper.services.tezzeret.child SETTINGS``.

It reads orders from its standard input and writes replies to its standard output until its input is closed.
"""

import functools
import os
import sys
import tempfile
from pathlib import Path

import msgspec

from esper.errors import ConfigError
from esper.runtime.pipe import take_over_pipes
from esper.services.tezzeret.forking import answer_in_fork
from esper.services.tezzeret.landlock import granted, write_only_in
from esper.services.tezzeret.limits import leave_network, limit_job, limit_process
from esper.services.tezzeret.orders import ORDERS, ChildSettings, Exhausted, Ready, Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from esper.services.tezzeret.build import Builder

_TRACER_MB = 96
"""Address space of torch's tracer, 72 MiB in torch 2.13: it is imported for the first certificate, and is no job's own."""


def main() -> None:
    """Serve until the parent closes the pipe or a job has used memory up."""
    pipe = take_over_pipes()
    isolated = leave_network()  # while this process has one thread
    settings = msgspec.json.decode(sys.argv[1], type=ChildSettings)
    os.nice(settings.nice)
    builder = _builder(settings)
    trouble = _imported(settings.extensions)
    confined = granted()
    tempfile.gettempdir()  # which torch's tracer asks for, and which is found by writing to it
    later_mb = 0 if settings.fork_per_job else _TRACER_MB
    base_mb = limit_process(settings.memory_limit_mb + later_mb, settings.scratch_mb if confined else 0)
    pipe.send(msgspec.msgpack.encode(Ready(trouble=trouble, base_mb=base_mb, isolated=isolated, confined=confined)))
    if confined and not settings.fork_per_job:
        _confine(settings)
    while not trouble and (message := pipe.receive()) is not None:
        if settings.fork_per_job:
            work = functools.partial(_forked_reply, builder, message, settings, confined)
            answer_in_fork(pipe, work, deadline_s=settings.deadline_s)
            continue
        reply = _reply(builder, message, settings)
        pipe.send(msgspec.msgpack.encode(reply))
        if isinstance(reply, Exhausted):
            break
    # Nothing is left to be saved, and tearing torch down takes longer than a build.
    os._exit(0)


def _forked_reply(builder: "Builder", message: bytes, settings: ChildSettings, confined: bool) -> Reply:
    """Reply in a fork; only it can name its own files under /proc, so it confines itself."""
    if confined:
        _confine(settings)
    return _reply(builder, message, settings)


def _confine(settings: ChildSettings) -> None:
    write_only_in(Path(settings.scratch) if settings.scratch else None)


def _reply(builder: "Builder", message: bytes, settings: ChildSettings) -> Reply:
    limit_job(settings.deadline_s)
    return builder.reply(ORDERS.decode(message))


def _builder(settings: ChildSettings) -> "Builder":
    """Import torch, after the pipes were taken over: libraries print."""
    import torch

    from esper.services.tezzeret.build import Builder
    from esper.services.tezzeret.compiler import KernelCompiler
    from esper.services.tezzeret.screening import ForgeLimits
    from esper.services.tezzeret.validator import KernelValidator

    if settings.fork_per_job:
        import torch._dynamo.config  # a second, which every fork would take otherwise
    torch.set_num_threads(1)
    limits = ForgeLimits(memory_limit_mb=settings.memory_limit_mb, deadline_s=settings.deadline_s)
    return Builder(KernelCompiler(limits, backend=settings.backend), KernelValidator())


def _imported(extensions: tuple[str, ...]) -> str:
    """Import the modules with custom operations; return what went wrong, or nothing."""
    from esper.ir import ops

    try:
        ops.install(extensions)
    except ConfigError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main()
