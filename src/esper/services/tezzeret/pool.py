"""Children that build, kept from job to job and replaced when they die."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeVar

import msgspec
from msgspec.msgpack import Decoder

from esper.contracts.kernel import CompiledKernelArtifact, ValidationResult
from esper.errors import ChildDied, EsperError, ForgeUnavailable, Unavailable
from esper.runtime.supervision import ChildCommand, SupervisedChild
from esper.services.tezzeret.orders import (
    CHILD_MODULE,
    READY,
    REPLIES,
    Additions,
    ChildSettings,
    Compiled,
    Died,
    Executed,
    Execution,
    Exhausted,
    Finished,
    Forged,
    Order,
    Refused,
    Reply,
    read_additions,
    read_kernel,
    refusal,
)
from esper.services.tezzeret.places import Places
from esper.services.tezzeret.scratch import Scratch
from esper.services.tezzeret.screening import ForgeLimits

Result = TypeVar("Result")
Answer = TypeVar("Answer", Forged, Finished, Executed)
Message = TypeVar("Message")

_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        # Children share the cores with training: each uses one.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # glibc reserves 64 MiB of address space for each arena, which would count against the memory limit.
        "MALLOC_ARENA_MAX": "1",
        # Kernels are built and tried on the CPU; a CUDA context would take seconds and gigabytes.
        "CUDA_VISIBLE_DEVICES": "",
    }
)

_FORK_END_S = 2.0
"""A fork and its end take milliseconds; a busy machine may take a second."""


class Child(Protocol):
    """What a pool needs of a child; `esper.runtime.supervision.SupervisedChild` says what its methods do."""

    @property
    def alive(self) -> bool: ...

    @property
    def pid(self) -> int | None: ...

    async def start(self, greeting: Decoder[Message]) -> Message: ...

    async def ask(self, request: object, answer: Decoder[Message], *, limit_s: float) -> Message: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class PoolConfig:
    """How children are kept.

    Attributes:
        num_children: Builds at a time.
        spare_children: How many more there may be while builds take over a second: one that hangs then holds up no other.
        limits: What one build may take.
        extensions: Modules with custom operations that each child imports.
        jobs_per_child: Builds after which a child is replaced, so that whatever a foreign operation leaks has an end; a start
            of 1.5 s adds 3 ms to each build.
        start_limit_s: How long a child may take until it is ready.
        fork_per_job: Whether each build gets a process of its own, forked from a child that has imported torch and run nothing:
            for designs whose operations are not trusted. Builds then take 50 to 100 ms longer.
        nice: How much the system prefers other processes to the children, from 0 to 19.
        backend: What level 3 makes inference forms with.
        scratch_mb: Size of one file in the folder that each child gets to write in, emptied after each job; 0 for no folder.
            Machine code is compiled and unpacked there.
        place: Makes a child of a command: on this machine, or as `esper.services.tezzeret.ray_child` does.
    """

    num_children: int = 1
    spare_children: int = 0
    limits: ForgeLimits = field(default_factory=ForgeLimits)
    extensions: tuple[str, ...] = ()
    jobs_per_child: int = 500
    start_limit_s: float = 60.0
    fork_per_job: bool = False
    nice: int = 0
    backend: Compiled = "onnx"
    scratch_mb: int = 0
    place: Callable[[ChildCommand], Child] = SupervisedChild

    @property
    def patience_s(self) -> float:
        """How long a child is waited for; one that forks ends a job that hangs by itself, and goes on."""
        return self.limits.deadline_s + (_FORK_END_S if self.fork_per_job else 0.0)


@dataclass
class _Seat:
    """A child with its record."""

    child: Child
    scratch: Scratch | None = None
    jobs: int = 0
    used_at_s: float = 0.0

    async def close(self) -> None:
        """End the child, and remove what it wrote."""
        try:
            await self.child.close()
        finally:
            if self.scratch is not None:
                await self.scratch.remove()


class ForgePool:
    """Builds in child processes, one job per child at a time; the first job starts the first child.

    Args:
        config: How children are kept.

    Attributes:
        started: Children that were started.
        longest_s: The longest that a child was at work on one job.
        isolated: Whether the newest child is cut off from every network; None before there is one.
        confined: Whether it can write nowhere but in its scratch folder; None before there is one.
    """

    def __init__(self, config: PoolConfig | None = None) -> None:
        self.started = 0
        self.longest_s = 0.0
        self.isolated: bool | None = None
        self.confined: bool | None = None
        self._config = config or PoolConfig()
        self._places = Places(self._config.num_children, spare=self._config.spare_children)
        self._idle: deque[_Seat] = deque()

    @property
    def idle_pids(self) -> list[int]:
        """Process ids of the children that wait for work."""
        return [seat.child.pid for seat in self._idle if seat.child.alive and seat.child.pid is not None]

    async def forge(self, order: Order) -> tuple[CompiledKernelArtifact, ValidationResult]:
        """Compile and validate in a child.

        Args:
            order: The build.

        Returns:
            The artifact and its report; whether it passed is in the report.

        Raises:
            CompilationError: If the child refused it.
            ChildDied: If it killed the child, or used its memory up.
            DeadlineExceeded: If it took longer than the deadline; the child was killed.
            ForgeUnavailable: If no child could be started.
        """
        reply = await self._answered(order, Forged)
        return _sane(lambda: read_kernel(reply))

    async def finish(self, order: Order) -> Additions:
        """Measure a kernel, and make what a level adds to it, in a child; it raises what `forge` does.

        Args:
            order: The build, with the kernel that it gave.
        """
        reply = await self._answered(order, Finished)
        return _sane(lambda: read_additions(reply))

    async def execute(self, order: Execution) -> Executed:
        """Run a kernel, in a child; it raises what `forge` does."""
        return await self._answered(order, Executed)

    async def _answered(self, order: Order | Execution, kind: type[Answer]) -> Answer:
        reply = await self._reply(order)
        if isinstance(reply, kind):
            return reply
        raise self._trouble(reply)

    async def _reply(self, order: Order | Execution) -> Reply:
        async with self._places.taken():
            seat = await self._seat()
            reply: Reply | None = None
            began_s = asyncio.get_running_loop().time()
            try:
                reply = await seat.child.ask(order, REPLIES, limit_s=self._config.patience_s)
            finally:
                self.longest_s = max(self.longest_s, asyncio.get_running_loop().time() - began_s)
                # One that has used its memory up ends by itself, a moment later.
                await self._put_back(seat, worn=isinstance(reply, Exhausted) and not self._config.fork_per_job)
        return reply

    async def retire(self, *, idle_s: float) -> None:
        """End children that have had nothing to do for that long; the next job starts one again."""
        now = asyncio.get_running_loop().time()
        while self._idle and now - self._idle[0].used_at_s >= idle_s:
            await self._idle.popleft().close()

    async def close(self) -> None:
        """End every idle child; those at work end with their job."""
        await self.retire(idle_s=0.0)

    async def _seat(self) -> _Seat:
        """Return the child that was used last and lives, or a new one."""
        while self._idle:
            seat = self._idle.pop()
            if seat.child.alive:
                return seat
            await seat.close()
        return await self._started()

    async def _started(self) -> _Seat:
        scratch = Scratch() if self._config.scratch_mb else None
        settings = ChildSettings(
            extensions=self._config.extensions,
            memory_limit_mb=self._config.limits.memory_limit_mb,
            deadline_s=self._config.limits.deadline_s,
            fork_per_job=self._config.fork_per_job,
            nice=self._config.nice,
            backend=self._config.backend,
            scratch=str(scratch.folder) if scratch else "",
            scratch_mb=self._config.scratch_mb,
        )
        arguments = (msgspec.json.encode(settings).decode(),)
        environment = {**_ENVIRONMENT, **(scratch.environment if scratch else {})}
        child = self._config.place(
            ChildCommand(CHILD_MODULE, arguments, environment, start_limit_s=self._config.start_limit_s)
        )
        seat = _Seat(child, scratch)
        try:
            ready = await child.start(READY)
        except Unavailable as error:
            await seat.close()
            raise ForgeUnavailable("no child of the forge could be started", why=str(error)) from error
        except BaseException:
            await seat.close()
            raise
        self.started += 1
        self.isolated, self.confined = ready.isolated, ready.confined
        if ready.trouble:
            await seat.close()
            raise ForgeUnavailable(
                "no child of the forge could be started", why=ready.trouble, todo="check the extensions of the forge"
            )
        return seat

    async def _put_back(self, seat: _Seat, *, worn: bool) -> None:
        """Keep a child for the next job, unless it is broken or worn out."""
        seat.jobs += 1
        seat.used_at_s = asyncio.get_running_loop().time()
        if not seat.child.alive or worn or seat.jobs >= self._config.jobs_per_child:
            await seat.close()
            return
        if seat.scratch is not None:
            await seat.scratch.empty()
        self._idle.append(seat)

    def _trouble(self, reply: Reply) -> EsperError:
        """Return what a reply means that is not what was asked for."""
        match reply:
            case Refused():
                return refusal(reply)
            case Exhausted():
                limit_mb = self._config.limits.memory_limit_mb
                return ChildDied(
                    "a child of the forge ended",
                    how=f"it ran out of memory; {limit_mb} MiB are allowed",
                    stderr=reply.why,
                )
            case Died():
                return ChildDied("the process of a build ended at work", how=reply.how)
            case Forged() | Finished() | Executed():
                return ChildDied("a child of the forge is not sane", how="it answered something else than was asked")


def _sane(read: Callable[[], Result]) -> Result:
    """Read a reply; a child whose words cannot be read is as good as dead."""
    try:
        return read()
    except (ValueError, msgspec.MsgspecError) as garbled:
        raise ChildDied("a child of the forge is not sane", how=f"it sent something else: {garbled}") from garbled


__all__ = ["ForgePool", "PoolConfig"]
