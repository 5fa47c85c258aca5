"""Services as processes of their own, as they are in production."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from esper.contracts.kernel import BuildSpec, CompiledKernelContract
from esper.services.clients import UrzaClient
from esper.services.clients.messages import TransportConfig
from esper.testing.server import free_port

LIMIT_S = 90.0


@contextmanager
def process(
    *arguments: str, folder: Path, extension: str = "esper", **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of Esper until the block ends, in a process where a module with operations of one's own is imported."""
    program = f"import runpy, {extension}; runpy.run_module('esper.cli', run_name='__main__')"
    with (folder / f"{arguments[1]}-{len(list(folder.iterdir()))}.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()
            running.wait(30)


@dataclass
class Store:
    """A running store."""

    address: str
    client: UrzaClient
    process: "subprocess.Popen[bytes]"


@asynccontextmanager
async def running_store(
    folder: Path,
    *,
    key: str | None = None,
    extension: str = "esper",
    limits: TransportConfig | None = None,
    **settings: str,
) -> AsyncIterator[Store]:
    """Run a store on the library in a folder, and have a client of it."""
    port = free_port()
    command = ("serve", "urza", "--port", str(port), "--root", "library")
    with process(*command, folder=folder, extension=extension, **settings) as running:
        address = f"http://127.0.0.1:{port}"
        await answering(f"{address}/health")
        async with UrzaClient(address, key=None if key is None else SecretStr(key), config=limits) as client:
            yield Store(address, client, running)


def forge(store: Store, port: int) -> tuple[str, ...]:
    """Return the command that runs a forge for a store."""
    return ("serve", "tezzeret", "--port", str(port), "--urza", store.address, "--root", "forge")


async def answering(url: str, status: int = 200, *, limit_s: float = LIMIT_S) -> None:
    """Wait until an address answers so."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(limit_s):
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.status == status:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def found(
    store: UrzaClient, blueprint_id: str, build: BuildSpec | None = None, *, limit_s: float = LIMIT_S
) -> CompiledKernelContract:
    """Wait for the kernel of a blueprint."""
    async with asyncio.timeout(limit_s):
        while (kernel := await store.find(blueprint_id, build or BuildSpec())) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return kernel


async def forms_of(store: UrzaClient, kernel_id: str, *levels: str, limit_s: float = LIMIT_S) -> None:
    """Wait until a kernel has forms of these levels, and no other."""
    async with asyncio.timeout(limit_s):
        while [kept.form.level for kept in await store.forms(kernel_id)] != list(levels):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def status_of(session: aiohttp.ClientSession, address: str = "") -> dict[str, Any]:
    """Return what a service says of itself."""
    async with session.get(f"{address}/status") as answer:
        told: dict[str, Any] = await answer.json()
        return told


async def executed(session: aiohttp.ClientSession, kernel_id: str, backend: str, shape: list[int]) -> dict[str, Any]:
    """Have a forge run a kernel; return its answer, with the status."""
    asked = {"kernel_id": kernel_id, "input_tensor_shape": shape, "execution_context": {"backend": backend}}
    async with session.post("/api/v1/kernels/execute", json=asked) as answer:
        return {"status": answer.status, **await answer.json()}
