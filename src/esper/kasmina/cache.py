"""Kernels in memory, before whatever library they come from."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

from esper.contracts.adaptation import Outcome
from esper.contracts.kernel import (
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    CompiledKernelContract,
)
from esper.errors import EsperError
from esper.ports import Library

DEFAULT_BYTES = 256 << 20


class KernelCache:
    """A library that remembers the kernels that it read last; implements `esper.ports.Library`.

    Args:
        library: Where kernels come from.
        read: How they are read there, where that is not ``library.read``.
        max_bytes: What may be held; those that were used longest ago go first.

    Attributes:
        hits: Reads that needed no library.
        misses: Reads that did.
        failed: Prefetches that came to nothing; the read that follows says why.
    """

    def __init__(
        self,
        library: Library,
        *,
        read: Callable[[str], Awaitable[bytes]] | None = None,
        max_bytes: int = DEFAULT_BYTES,
    ) -> None:
        self.hits = self.misses = self.failed = 0
        self._library, self._read, self._max_bytes = library, read or library.read, max_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0
        self._in_flight: dict[str, asyncio.Task[bytes]] = {}

    async def read(self, kernel_id: str) -> bytes:
        """Return the bytes of a validated kernel, whose digest the library verified.

        What is in memory was validated when it was read; one that was withdrawn since is still handed out, by its digest,
        until this process ends or forgets it.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
        """
        held = self._held.get(kernel_id)
        if held is not None:
            self.hits += 1
            self._held.move_to_end(kernel_id)
            return held
        # One caller's end is not the end of the others.
        return await asyncio.shield(self._asked_for(kernel_id))

    def prefetch(self, kernel_ids: Iterable[str]) -> None:
        """Begin to read kernels that are likely to be needed soon; nobody waits for them."""
        for kernel_id in kernel_ids:
            if kernel_id not in self._held:
                self._asked_for(kernel_id)

    async def settled(self) -> None:
        """Wait until everything that was begun is here, or has failed."""
        while self._in_flight:
            await asyncio.wait(list(self._in_flight.values()))

    async def submit(self, request: BlueprintSubmissionRequest) -> BlueprintSubmissionResponse:
        """Store a blueprint and queue it for the forge."""
        return await self._library.submit(request)

    async def find(self, blueprint_id: str, build: BuildSpec) -> CompiledKernelContract | None:
        """Return the validated kernel of a blueprint, or None while there is none, and begin to read it.

        Raises:
            KernelRejected: If the forge refused it.
        """
        found = await self._library.find(blueprint_id, build)
        if found is not None:
            self.prefetch([found.kernel_id])
        return found

    async def withdraw(self, blueprint_id: str, build: BuildSpec) -> None:
        """End a build that waits or is at work."""
        await self._library.withdraw(blueprint_id, build)

    async def report(self, outcome: Outcome) -> None:
        """Record what a graft brought."""
        await self._library.report(outcome)

    def _asked_for(self, kernel_id: str) -> asyncio.Task[bytes]:
        task = self._in_flight.get(kernel_id)
        if task is None:
            self.misses += 1
            task = self._in_flight[kernel_id] = asyncio.ensure_future(self._read(kernel_id))
            task.add_done_callback(lambda done: self._landed(kernel_id, done))
        return task

    def _landed(self, kernel_id: str, task: asyncio.Task[bytes]) -> None:
        self._in_flight.pop(kernel_id, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.failed += isinstance(error, EsperError)
            return
        data = task.result()
        if len(data) > self._max_bytes:
            return
        self._held[kernel_id] = data
        self._size += len(data)
        while self._size > self._max_bytes:
            self._size -= len(self._held.popitem(last=False)[1])
