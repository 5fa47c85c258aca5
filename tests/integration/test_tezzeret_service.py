"""Store and forge as two processes: a blueprint goes in over HTTP, and comes back as a kernel, whoever dies meanwhile."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from esper.contracts.kernel import BuildSpec, CompiledKernelContract
from esper.services.clients import UrzaClient
from esper.testing.forging import adapter, request_for
from esper.testing.server import free_port

LIMIT_S = 90.0
O3 = BuildSpec(level="O3")


@contextmanager
def process(*arguments: str, folder: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of Esper until the block ends."""
    with (folder / f"{arguments[1]}-{len(list(folder.iterdir()))}.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "esper.cli", *arguments],
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


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    port = free_port()
    with process("serve", "urza", "--port", str(port), "--root", "library", folder=tmp_path):
        address = f"http://127.0.0.1:{port}"
        await answering(f"{address}/ready")
        async with UrzaClient(address) as client:
            yield Store(address, client)


async def answering(url: str, status: int = 200) -> None:
    """Wait until an address answers so."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(LIMIT_S):
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.status == status:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def found(store: UrzaClient, blueprint_id: str, build: BuildSpec | None = None) -> CompiledKernelContract:
    """Wait for the kernel of a blueprint."""
    async with asyncio.timeout(LIMIT_S):
        while (kernel := await store.find(blueprint_id, build or BuildSpec())) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return kernel


def forge(store: Store, port: int) -> tuple[str, ...]:
    return ("serve", "tezzeret", "--port", str(port), "--urza", store.address, "--root", "forge")


@pytest.mark.timeout(240)
async def test_a_blueprint_comes_back_as_a_kernel_with_forms_that_run(store: Store, tmp_path: Path) -> None:
    port = free_port()
    with process(*forge(store, port), folder=tmp_path, ESPER_TEZZERET_OPTIMIZATION_LEVEL="O2") as running:
        await store.client.submit(request_for(adapter(), build=O3))
        kernel = await found(store.client, adapter().digest, O3)
        async with asyncio.timeout(LIMIT_S):
            while [kept.form.level for kept in await store.client.forms(kernel.kernel_id)] != ["O1", "O2"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{port}"
        await answering(f"{address}/ready")
        async with aiohttp.ClientSession(address) as session:
            for backend in ("kernel", "eager"):
                asked = {"kernel_id": kernel.kernel_id, "input_tensor_shape": [3, 8]}
                async with session.post(
                    "/api/v1/kernels/execute", json={**asked, "execution_context": {"backend": backend}}
                ) as answer:
                    told = await answer.json()
                    assert answer.status == 200, told
                assert (told["output_tensor_shape"], told["backend"]) == ([3, 8], backend)
                assert told["latency_ms"] > 0
            await refuses(session, {"kernel_id": kernel.kernel_id, "input_tensor_shape": [3, 9]}, "ESP-3430")
            await refuses(session, {"kernel_id": kernel.kernel_id, "input_tensor_shape": [10**7, 8]}, "ESP-3431")
            await refuses(
                session,
                {
                    "kernel_id": kernel.kernel_id,
                    "input_tensor_shape": [3, 8],
                    "execution_context": {"backend": "onnx"},
                },
                "ESP-5000",
            )
            status = await status_of(session, "")
            assert status["endings"] == {"compiled": 1, "finished": 1}
            assert (status["workers"], status["highest_level"], status["in_hand"]) == (1, "O2", 0)
            async with session.get("/metrics") as answer:
                assert 'esper_tezzeret_jobs_total{ending="compiled"} 1.0' in await answer.text()
        revoke(tmp_path / "forge", status["key_id"])
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    with process(*forge(store, port), folder=tmp_path):
        await answering(f"{address}/ready")
        async with aiohttp.ClientSession(address) as session:
            await refuses(
                session,
                {
                    "kernel_id": kernel.kernel_id,
                    "input_tensor_shape": [3, 8],
                    "execution_context": {"backend": "eager"},
                },
                "ESP-7254",
            )


async def refuses(session: aiohttp.ClientSession, body: dict[str, object], code: str) -> None:
    async with session.post("/api/v1/kernels/execute", json=body) as answer:
        told = await answer.json()
        assert answer.status >= 400
        assert told["code"] == code, told


def revoke(root: Path, key_id: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "esper.cli", "keys", "signing", "revoke", key_id, "--why", "lost", "--root", str(root)],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip


@pytest.mark.timeout(300)
async def test_what_a_forge_held_that_was_killed_is_finished_by_another(store: Store, tmp_path: Path) -> None:
    quick, port, build = {"ESPER_TEZZERET_LEASE_S": "2"}, free_port(), BuildSpec(level="O1")
    await store.client.submit(request_for(adapter(), build=build))
    with process(*forge(store, port), folder=tmp_path, **quick) as first:
        await answering(f"http://127.0.0.1:{port}/ready")
        async with aiohttp.ClientSession() as session, asyncio.timeout(LIMIT_S):
            while (await status_of(session, f"http://127.0.0.1:{port}"))["in_hand"] != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait(30)
    assert await store.client.find(adapter().digest, build) is None, "it was killed at work"
    with process(*forge(store, free_port()), folder=tmp_path, **quick):
        kernel = await found(store.client, adapter().digest, build)
    assert [kept.form.level for kept in await store.client.forms(kernel.kernel_id)] == ["O1"]


async def status_of(session: aiohttp.ClientSession, address: str) -> dict[str, Any]:
    async with session.get(f"{address}/status") as answer:
        told: dict[str, Any] = await answer.json()
        return told


async def test_a_forge_listens_beyond_loopback_with_a_token_only(tmp_path: Path) -> None:
    with process("serve", "tezzeret", "--host", "0.0.0.0", "--port", str(free_port()), folder=tmp_path) as running:
        assert running.wait(60) != 0
    said = b"".join(path.read_bytes() for path in tmp_path.glob("*.log"))
    assert b"ESP-2572" in said
