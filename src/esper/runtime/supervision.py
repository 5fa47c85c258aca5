"""Child processes that cannot harm their parent: spoken to over pipes, with a deadline for every answer."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from msgspec.msgpack import Decoder, encode

from esper.errors import ChildDied, ConfigError, DeadlineExceeded, Unavailable
from esper.runtime.pipe import HEADER

Answer = TypeVar("Answer")

_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "TMPDIR")
"""What an interpreter may need in order to start; everything else, secrets above all, stays with the parent."""
_TAIL_BYTES = 8_192
_BUFFER_BYTES = 2**20
_EXIT_S = 2.0
"""How long a child that closed its pipe, or was killed, may take to be gone."""


@dataclass(frozen=True)
class ChildCommand:
    """What to run as a child.

    Attributes:
        module: Module that is run as ``python -m``; it speaks through `esper.runtime.pipe`.
        args: Its arguments.
        environment: Variables that it gets besides the few that an interpreter needs.
        start_limit_s: How long it may take until its greeting.
        end_limit_s: How long it may go on after its input was closed.
        longest_message_bytes: A longer answer is not read; its sender counts as gone mad.
    """

    module: str
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    start_limit_s: float = 60.0
    end_limit_s: float = 1.0
    longest_message_bytes: int = 2**31


@dataclass
class _Running:
    """A child that was started."""

    transport: asyncio.SubprocessTransport
    process: Process
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.Task[None]
    tail: bytearray

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    async def ended(self, limit_s: float) -> bool:
        """Wait for its end; return whether it came in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self.process.wait()
        return self.has_ended

    def kill(self) -> None:
        """Kill it with whatever it started itself."""
        if self.has_ended:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()


class SupervisedChild:
    """A child process that answers one request at a time.

    It is started without the user's ``__main__`` (unlike multiprocessing), with few environment variables, in a session of
    its own, so that the terminal's interrupts reach the parent alone. It ends when the parent does. Start it from a thread
    that lives as long as it shall: Linux counts that thread as the parent.

    Args:
        command: What to run.
    """

    def __init__(self, command: ChildCommand) -> None:
        self._command = command
        self._running: _Running | None = None
        self._in_step = False

    @property
    def alive(self) -> bool:
        """Whether it can be asked: it has greeted, has not ended, and owes no answer."""
        return self._in_step and self._running is not None and not self._running.has_ended

    @property
    def pid(self) -> int | None:
        """Its process id, once it was started."""
        return None if self._running is None else self._running.process.pid

    async def start(self, greeting: Decoder[Answer]) -> Answer:
        """Start it and wait for its first message.

        Args:
            greeting: Reads that message.

        Raises:
            ChildDied: If it ended before.
            DeadlineExceeded: If the greeting did not come within ``start_limit_s``.
            Unavailable: If the system starts no process now.
            ConfigError: If there is no interpreter to run it.
        """
        self._running = running = await _launched(self._command)
        return await self._exchange(running, None, greeting, self._command.start_limit_s)

    async def ask(self, request: object, answer: Decoder[Answer], *, limit_s: float) -> Answer:
        """Send a request and wait for its answer; where anything goes wrong, the child is killed.

        Args:
            request: Anything that msgspec encodes.
            answer: Reads the answer.
            limit_s: How long it may take.

        Raises:
            ChildDied: If the child ended, or sent something else, or was not alive.
            DeadlineExceeded: If the answer did not come in time.
        """
        if self._running is None or not self._in_step:
            raise ChildDied(f"child {self._command.module} cannot be asked", how="it is not alive")
        return await self._exchange(self._running, encode(request), answer, limit_s)

    async def close(self) -> None:
        """End it: by closing its input, and by force where it goes on for longer than ``end_limit_s``."""
        running = self._running
        if running is None:
            return
        try:
            if self.alive:
                running.stdin.close()
                await running.ended(self._command.end_limit_s)
        finally:
            self._in_step = False
            running.kill()
            await running.ended(_EXIT_S)
            running.transport.close()
            running.stderr.cancel()

    async def _exchange(
        self, running: _Running, message: bytes | None, answer: Decoder[Answer], limit_s: float
    ) -> Answer:
        """Send and receive; until the answer is there, the conversation is out of step."""
        self._in_step = False
        name = self._command.module
        try:
            async with asyncio.timeout(limit_s):
                decoded = answer.decode(await self._answered(running, message))
        except TimeoutError as late:
            raise DeadlineExceeded(f"child {name} was killed", why=f"no answer within {limit_s:g} s") from late
        except (EOFError, ConnectionError) as gone:
            raise await _death(running, name) from gone
        except msgspec.MsgspecError as garbled:
            raise ChildDied(f"child {name} was killed", how=f"it sent something else: {garbled}") from garbled
        else:
            self._in_step = True
            return decoded
        finally:
            if not self._in_step:
                running.kill()

    async def _answered(self, running: _Running, message: bytes | None) -> bytes:
        if message is not None:
            running.stdin.write(HEADER.pack(len(message)))
            running.stdin.write(message)
            await running.stdin.drain()
        (size,) = HEADER.unpack(await running.stdout.readexactly(HEADER.size))
        if size > self._command.longest_message_bytes:
            raise msgspec.DecodeError(f"a message of {size} bytes")
        return await running.stdout.readexactly(size)


async def _launched(command: ChildCommand) -> _Running:
    if not sys.executable:
        raise ConfigError("no child process can be started", why="this program knows of no Python interpreter")
    loop = asyncio.get_running_loop()
    protocol = SubprocessStreamProtocol(limit=_BUFFER_BYTES, loop=loop)
    # -P keeps the folder that happens to be current from being imported from; PYTHONPATH says all there is.
    argv = (sys.executable, "-P", "-m", command.module, *command.args)
    try:
        transport, _ = await loop.subprocess_exec(
            lambda: protocol,
            *argv,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=_environment(command.environment),
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"child {command.module} cannot be started", why=str(error)) from error
    process, tail = Process(transport, protocol, loop), bytearray()
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    if stdin is None or stdout is None or stderr is None:
        raise Unavailable(f"child {command.module} cannot be started", why="it has no pipes")
    return _Running(transport, process, stdin, stdout, asyncio.create_task(_keep_tail(stderr, tail)), tail)


async def _keep_tail(stderr: asyncio.StreamReader, tail: bytearray) -> None:
    while chunk := await stderr.read(_TAIL_BYTES):
        tail += chunk
        del tail[:-_TAIL_BYTES]


async def _death(running: _Running, name: str) -> ChildDied:
    """Describe how a child ended; one that only closed its pipe is killed first."""
    if not await running.ended(_EXIT_S):
        running.kill()
        await running.ended(_EXIT_S)
    await asyncio.wait([running.stderr], timeout=_EXIT_S)
    how = _described(running.process.returncode)
    return ChildDied(f"child {name} ended at work", how=how, stderr=running.tail.decode(errors="replace"))


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment: it imports what the parent would, and knows none of its secrets."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**kept, "PYTHONPATH": path, "PYTHONUTF8": "1", **extra}


def _described(code: int | None) -> str:
    if code is None:
        return "it cannot be ended"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
