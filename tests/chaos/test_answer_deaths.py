"""A service that is killed at any step of a request with a key: sent again, it is done once, and answered as what was done.

Taking a job is what may least be done twice: the second job would wait for a lease to lapse that nobody knows of.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from esper.contracts.problems import IDEMPOTENCY_KEY
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.database import engine_at
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, request_for
from esper.testing.server import free_port
from tests.integration.urza.process import listens

LIMIT_S = 60.0
CHILD = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from esper.services.rest.server import run
from esper.services.urza.database import Database
from esper.services.urza.jobs import JobQueue
from esper.services.urza.rest.application import create_app
from esper.services.urza.rest.config import UrzaConfig
from esper.services.urza.rest.idempotency import Idempotency

url, folder, port, step = *sys.argv[1:3], int(sys.argv[3]), sys.argv[4]
done = 0

def here(name):
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)

claim, answered = JobQueue.claim, Idempotency.answered

async def claimed(self, worker, **given):
    global done
    here("before the work")
    job = await claim(self, worker, **given)
    done += 1
    here("after the work")
    return job

async def told(self, request, work):
    answer = await answered(self, request, work)
    here("after the commit")
    return answer

JobQueue.claim, Idempotency.answered = claimed, told
event.listen(Engine, "commit", lambda _: here("while committing") if done else None)
if step == "answer after its effect":
    step = "while committing"
    Database.joined = staticmethod(nullcontext)
config = UrzaConfig(root=Path(folder), database_url=url, port=port)
run(lambda: create_app(config), config)
"""
STEPS = ("before the work", "after the work", "while committing", "after the commit")


@asynccontextmanager
async def service(url: str, folder: Path, step: str) -> AsyncIterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run a service that kills itself at a step."""
    port, source = free_port(), str(Path(__file__).parents[2] / "src")
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", CHILD, url, str(folder), str(port), step], env=os.environ | {"PYTHONPATH": source}
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            while not listens(port):
                assert child.poll() is None
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}", child
    finally:
        child.kill()
        await asyncio.to_thread(child.wait, LIMIT_S)


async def claimed(address: str) -> Any:
    headers, body = {IDEMPOTENCY_KEY: "the-same"}, {"worker": "w", "lease_s": 600}
    async with (
        aiohttp.ClientSession() as caller,
        caller.post(f"{address}/api/v1/jobs/claim", json=body, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def held_after(url: str, folder: Path, step: str) -> tuple[str, list[str]]:
    """Let a service die at a step of a claim and send the claim again; return the job of the answer, and those that are held."""
    async with await KernelManager.at(url, LocalBlobs(folder / "blobs")) as manager:
        for width in (1, 2, 3):
            await manager.submit(request_for(adapter(width)))
    async with service(url, folder, step) as (address, child):
        with pytest.raises(aiohttp.ClientError):
            await claimed(address)
        assert await asyncio.to_thread(child.wait, LIMIT_S) == -9
    async with service(url, folder, "never") as (address, _):
        job = await claimed(address)
    engine = engine_at(url)
    async with engine.connect() as connection:
        held = list(await connection.scalars(text("SELECT id FROM compile_jobs WHERE status = 'leased'")))
    await engine.dispose()
    return job["job_id"], held


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("step", STEPS)
async def test_a_request_that_is_sent_again_is_done_once_whichever_step_a_service_is_killed_at(
    database_url: str, tmp_path: Path, step: str
) -> None:
    job, held = await held_after(database_url, tmp_path, step)
    assert held == [job]


@pytest.mark.slow
@pytest.mark.chaos
async def test_an_answer_that_is_committed_after_its_effect_is_noticed(postgres_url: str, tmp_path: Path) -> None:
    job, held = await held_after(postgres_url, tmp_path, "answer after its effect")
    assert held != [job]
