"""Children on the machines of a Ray cluster. Ray is imported here and nowhere else.

The process that builds is the one that a forge starts on its own machine, with its limits, its scrubbed environment and its
deadline; an actor of Ray starts it wherever a core is free, hands requests over, and kills it. What Ray itself moves between
machines it pickles, so that whoever holds the token of a cluster runs what they like on it.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import ray
from msgspec.msgpack import Decoder, decode, encode
from ray.exceptions import RayError

from esper.errors import ChildDied, DeadlineExceeded, ForgeUnavailable, Unavailable
from esper.runtime.supervision import ChildCommand, SupervisedChild

Answer = TypeVar("Answer")

_ON_THE_WAY_S = 15.0
"""What Ray may take beside the work: it starts a process for each actor, and a busy machine takes seconds for that."""
_REPORTS = "RAY_USAGE_STATS_ENABLED"
_RAW = Decoder(msgspec.Raw)


class _Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a request on the other machine.

    Attributes:
        data: The child's message.
        ended: How the child ended.
        stderr: What it said last.
        late: Why it was killed: it took too long.
        absent: Why there is no child.
    """

    data: bytes = b""
    ended: str = ""
    stderr: str = ""
    late: str = ""
    absent: str = ""


class _Keeper:
    """Keeps one child, on the machine of the actor that this is."""

    def __init__(self, command: ChildCommand) -> None:
        self._child = SupervisedChild(command)

    async def start(self) -> bytes:
        """Start it; return its greeting, packed."""
        return await _told(self._child.start(_RAW))

    async def ask(self, request: bytes, limit_s: float) -> bytes:
        """Hand a request over; return the answer, packed."""
        return await _told(self._child.ask(msgspec.Raw(request), _RAW, limit_s=limit_s))

    async def close(self) -> None:
        """End it."""
        await self._child.close()


class RayChild:
    """A child process somewhere in a cluster, with the methods of `esper.runtime.supervision.SupervisedChild`.

    Args:
        command: What to run there; the same release of Esper is installed on every machine.
    """

    def __init__(self, command: ChildCommand) -> None:
        self._command = command
        self._actor: Any = None
        self._in_step = False

    @property
    def alive(self) -> bool:
        """Whether it can be asked, as far as this machine knows."""
        return self._in_step

    @property
    def pid(self) -> int | None:
        """None: a process id means something on its own machine only."""
        return None

    async def start(self, greeting: Decoder[Answer]) -> Answer:
        """Start it wherever a core is free, and wait for its first message; see `SupervisedChild.start`."""
        self._actor = ray.remote(_Keeper).options(num_cpus=1, max_restarts=0, max_task_retries=0).remote(self._command)
        return await self._exchange(self._actor.start.remote(), greeting, self._command.start_limit_s)

    async def ask(self, request: object, answer: Decoder[Answer], *, limit_s: float) -> Answer:
        """Send a request and wait for its answer; see `SupervisedChild.ask`."""
        if not self._in_step:
            raise ChildDied(f"child {self._command.module} cannot be asked", how="it is not alive")
        return await self._exchange(self._actor.ask.remote(encode(request), limit_s), answer, limit_s)

    async def close(self) -> None:
        """End it, and the actor that kept it."""
        if self._actor is None:
            return
        try:
            if self._in_step:
                async with asyncio.timeout(self._command.end_limit_s + _ON_THE_WAY_S):
                    await self._actor.close.remote()
        except (RayError, TimeoutError):
            pass  # whatever is left ends with the actor
        finally:
            self._let_go()

    async def _exchange(self, under_way: Awaitable[bytes], answer: Decoder[Answer], limit_s: float) -> Answer:
        """Wait for an outcome; until it is there, the conversation is out of step."""
        self._in_step, name = False, self._command.module
        try:
            async with asyncio.timeout(limit_s + _ON_THE_WAY_S):
                outcome = decode(await under_way, type=_Outcome)
            read = answer.decode(_opened(outcome, name))
        except TimeoutError as silence:  # a child that is late is killed there, and that is an answer
            raise ForgeUnavailable(
                f"child {name} is gone", why=f"no machine answers for it after {limit_s:g} s"
            ) from silence
        except RayError as gone:
            raise ForgeUnavailable(f"child {name} is gone", why=f"its machine is: {str(gone)[:300]}") from gone
        except msgspec.MsgspecError as garbled:
            raise ChildDied(f"child {name} was killed", how=f"it sent something else: {garbled}") from garbled
        else:
            self._in_step = True
            return read
        finally:
            if not self._in_step:
                self._let_go()

    def _let_go(self) -> None:
        """Kill the actor; its child dies with it."""
        self._in_step = False
        if self._actor is not None and ray.is_initialized():
            ray.kill(self._actor, no_restart=True)
        self._actor = None


def placed_in(address: str | None, *, num_children: int) -> Callable[[ChildCommand], RayChild]:
    """Join a cluster, and return what places children in it.

    Call it from a thread that lives as long as the forge: what Ray starts on this machine ends with that thread.

    Args:
        address: The cluster; None starts one of this machine alone, which reports nothing to the makers of Ray unless it is
            told to.
        num_children: How many there will be at a time, which a cluster of this machine alone makes room for.

    Raises:
        ForgeUnavailable: If it cannot be joined.
    """
    if ray.is_initialized():
        return RayChild
    try:
        if address is None:
            os.environ.setdefault(_REPORTS, "0")
            ray.init("local", num_cpus=num_children, log_to_driver=False, include_dashboard=False)
        else:
            ray.init(address, log_to_driver=False)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise ForgeUnavailable("the Ray cluster cannot be joined", why=str(error)[:300]) from error
    return RayChild


def _opened(outcome: _Outcome, name: str) -> bytes:
    if outcome.ended:
        raise ChildDied(f"child {name} ended at work", how=outcome.ended, stderr=outcome.stderr)
    if outcome.late:
        raise DeadlineExceeded(f"child {name} was killed", why=outcome.late)
    if outcome.absent:
        raise Unavailable(f"child {name} cannot be started", why=outcome.absent)
    return outcome.data


async def _told(work: Awaitable[msgspec.Raw]) -> bytes:
    """Return what comes of work as bytes, so that no exception need be pickled."""
    try:
        return encode(_Outcome(data=bytes(await work)))
    except ChildDied as death:
        return encode(_Outcome(ended=death.how, stderr=death.stderr))
    except DeadlineExceeded as late:
        return encode(_Outcome(late=late.why))
    except Unavailable as absent:
        return encode(_Outcome(absent=str(absent)))
