"""Store and forge as two processes: a blueprint goes in over HTTP, and comes back as a kernel, whoever dies meanwhile."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from esper.contracts.kernel import BuildSpec
from esper.testing.forging import adapter, request_for
from esper.testing.server import free_port
from tests.integration.running import (
    LIMIT_S,
    Store,
    answering,
    executed,
    forge,
    forms_of,
    found,
    process,
    running_store,
    status_of,
)

O3 = BuildSpec(level="O3")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with running_store(tmp_path) as running:
        yield running


@pytest.mark.timeout(240)
async def test_a_blueprint_comes_back_as_a_kernel_with_forms_that_run(store: Store, tmp_path: Path) -> None:
    port = free_port()
    with process(*forge(store, port), folder=tmp_path, ESPER_TEZZERET_OPTIMIZATION_LEVEL="O2") as running:
        await store.client.submit(request_for(adapter(), build=O3))
        kernel_id = (await found(store.client, adapter().digest, O3)).kernel_id
        await forms_of(store.client, kernel_id, "O1", "O2")
        address = f"http://127.0.0.1:{port}"
        await answering(f"{address}/ready")
        async with aiohttp.ClientSession(address) as session:
            for backend in ("kernel", "eager"):
                told = await executed(session, kernel_id, backend, [3, 8])
                assert told["status"] == 200, told
                assert (told["output_tensor_shape"], told["backend"]) == ([3, 8], backend)
                assert told["latency_ms"] > 0
            assert (await executed(session, kernel_id, "kernel", [3, 9]))["code"] == "ESP-3430"
            assert (await executed(session, kernel_id, "kernel", [10**7, 8]))["code"] == "ESP-3431"
            lacking = await executed(session, kernel_id, "onnx", [3, 8])
            assert (lacking["status"], lacking["code"]) == (404, "ESP-5000")
            assert "there: kernel, eager" in lacking["detail"]
            status = await status_of(session)
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
            assert (await executed(session, kernel_id, "eager", [3, 8]))["code"] == "ESP-7254"


def revoke(root: Path, key_id: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "esper.cli", "keys", "signing", "revoke", key_id, "--why", "lost", "--root", str(root)],
        check=True, timeout=60, capture_output=True,
    )  # fmt: skip


@pytest.mark.chaos
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


async def test_a_forge_listens_beyond_loopback_with_a_token_only(tmp_path: Path) -> None:
    with process("serve", "tezzeret", "--host", "0.0.0.0", "--port", str(free_port()), folder=tmp_path) as running:
        assert running.wait(60) != 0
    said = b"".join(path.read_bytes() for path in tmp_path.glob("*.log"))
    assert b"ESP-2572" in said
