"""The artifact store of a run: a folder of its own machine, or one that other processes use, with caches before it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esper.ports import CompileQueue, Library

if TYPE_CHECKING:
    from esper.services.urza.line import Line
    from esper.services.urza.outbox import Outbox


@dataclass(frozen=True)
class Storage:
    """The artifact store as a run uses it.

    Attributes:
        library: Blueprints and kernels; those that were read last are in memory.
        queue: Builds.
        outbox: What it announces, where this process relays that.
        line: Tells builds that wait where they stand, where this process does.
        forge_workers: Builds at a time that this process does.
    """

    library: Library
    queue: CompileQueue
    outbox: "Outbox | None"
    line: "Line | None"
    forge_workers: int


@asynccontextmanager
async def storage_in(root: Path, forge_workers: int) -> AsyncIterator[Storage]:
    """Open the library in a folder.

    Raises:
        ConfigError: If the folder cannot be written.
        StoreUnavailable: If the library cannot be opened.
    """
    from esper.kasmina.cache import KernelCache
    from esper.services.urza.kernel_manager import KernelManager

    async with await KernelManager.open(root / "library") as manager:
        yield Storage(KernelCache(manager), manager, manager.outbox, manager.line, forge_workers)


@asynccontextmanager
async def storage_at(url: str, root: Path) -> AsyncIterator[Storage]:
    """Reach a store elsewhere, as `esper.services.clients.config.StoreConfig` says; its kernels stay on this machine's disk.

    Raises:
        ConfigError: If the address or a setting cannot be used, or the folder cannot be written.
        StoreUnavailable: If it does not answer.
        Rejected: If it wants another key.
    """
    from esper.kasmina.cache import KernelCache
    from esper.services.clients.config import StoreConfig
    from esper.services.clients.kept import KeptKernels
    from esper.services.urza.kernel_manager import PersistentKernelCache
    from esper.settings import load

    config = load(StoreConfig, "store")
    async with config.client(url) as client:
        await client.search_kernels(limit=1)  # whether it is there, and the key is right
        disk = PersistentKernelCache(root / "kernel-cache", max_bytes=config.disk_bytes)
        library = KernelCache(client, read=KeptKernels(client, disk.get).read, max_bytes=config.memory_bytes)
        yield Storage(library, client, None, None, config.forge_workers)


__all__ = ["Storage", "storage_at", "storage_in"]
