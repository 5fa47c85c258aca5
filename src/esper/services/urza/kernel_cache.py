"""Kernels kept on this machine's disk, so that each is fetched once."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from esper.errors import ContractError, StoreUnavailable
from esper.ir import digest_of, is_digest
from esper.runtime.files import own_folder, write_whole

DEFAULT_ROOT = Path("./esper-runs/kernel-cache")
DEFAULT_BYTES = 2 << 30


class PersistentKernelCache:
    """Keeps the kernels that were used last in a folder, which several processes may share and which outlives them.

    ```python
    cache = PersistentKernelCache(root / "kernel-cache", max_bytes=10 << 30)
    data = await cache.get(kernel_id, library.read)
    ```

    Args:
        root: The folder; it is made where it is missing.
        max_bytes: What it may hold; those that were used longest ago go first.

    Attributes:
        hits: Kernels that were found.
        misses: Kernels that were fetched.
        evicted: Kernels that had to go.
        damaged: Kernels that had not their digest any more, and were fetched again.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, root: Path = DEFAULT_ROOT, *, max_bytes: int = DEFAULT_BYTES) -> None:
        self.hits = self.misses = self.evicted = self.damaged = 0
        self._root, self._max_bytes = own_folder(root), max_bytes
        self._in_flight: dict[str, asyncio.Task[bytes]] = {}
        self._tidying = threading.Lock()

    async def get(self, kernel_id: str, fetch: Callable[[str], Awaitable[bytes]]) -> bytes:
        """Return the bytes of a kernel; whoever asks while somebody fetches it waits for the same bytes.

        Args:
            kernel_id: Its content address.
            fetch: Gets the bytes where they are not here.

        Raises:
            ContractError: If that is no content address.
            StoreUnavailable: If what was fetched has another digest.
        """
        if not is_digest(kernel_id):
            raise ContractError(f"{kernel_id[:80]!r} is no content address", todo="use sha256: and 64 hex digits")
        task = self._in_flight.get(kernel_id)
        if task is None:
            task = self._in_flight[kernel_id] = asyncio.ensure_future(self._loaded(kernel_id, fetch))
            task.add_done_callback(lambda done: self._landed(kernel_id, done))
        # One caller's end is not the end of the others.
        return await asyncio.shield(task)

    def _landed(self, kernel_id: str, task: asyncio.Task[bytes]) -> None:
        self._in_flight.pop(kernel_id, None)
        if not task.cancelled():
            task.exception()  # every caller may be gone

    async def _loaded(self, kernel_id: str, fetch: Callable[[str], Awaitable[bytes]]) -> bytes:
        held = await asyncio.to_thread(self._read, kernel_id)
        if held is not None:
            self.hits += 1
            return held
        self.misses += 1
        data = await fetch(kernel_id)
        found = await asyncio.to_thread(digest_of, data)
        if found != kernel_id:
            raise StoreUnavailable(
                f"kernel {kernel_id[:19]} was not taken", why=f"{len(data)} bytes came with the digest {found[:19]}",
                todo="look after the store that it came from", code="ESP-4211",
            )  # fmt: skip
        if len(data) <= self._max_bytes:
            await asyncio.to_thread(self._keep, kernel_id, data)
        return data

    def _path(self, kernel_id: str) -> Path:
        return self._root / kernel_id.removeprefix("sha256:")

    def _read(self, kernel_id: str) -> bytes | None:
        path = self._path(kernel_id)
        try:
            data = path.read_bytes()
            if digest_of(data) == kernel_id:
                os.utime(path)
                return data
            self.damaged += 1
            path.unlink(missing_ok=True)
        except OSError:  # not here, or taken away by another process; it is fetched
            return None
        return None

    def _keep(self, kernel_id: str, data: bytes) -> None:
        write_whole(self._path(kernel_id), data)
        with self._tidying:
            self._make_room()

    def _make_room(self) -> None:
        """Look what is there, other processes' kernels too, and let the oldest go."""
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            held -= size
            self.evicted += 1

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return the kernels that are there: when they were used last, their size, and where they lie."""
        found = []
        for path in self._root.iterdir():
            try:
                if is_digest(f"sha256:{path.name}"):
                    seen = path.stat()
                    found.append((seen.st_mtime_ns, seen.st_size, path))
            except OSError:  # another process took it away
                continue
        return found
