"""A store over HTTP, with a caller who has nothing but a connection."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from esper.services.clients import UrzaClient
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from esper.testing.store_server import served

ZERO = "sha256:" + "0" * 64


@dataclass
class Service:
    """A running store, with three ways to reach it."""

    address: str
    manager: KernelManager
    client: UrzaClient
    raw: aiohttp.ClientSession

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, "aiohttp.typedefs.LooseHeaders"]:
        async with self.raw.request(method, self.address + path, **options) as answer:
            body = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            return answer.status, json.loads(body) if "json" in kind else body, answer.headers

    async def kernel(self, width: int = 4, *, throughput: float | None = None, tags: tuple[str, ...] = ()) -> str:
        """Take a blueprint all the way to a validated kernel."""
        await self.manager.submit(request_for(adapter(width), tags=tags))
        job = await self.manager.claim("w", lease_s=30.0)
        assert job is not None
        artifact = artifact_of(job.blueprint_id, f"kernel {width} ".encode() * 100)
        await self.manager.complete(job.job_id, "w", artifact, verdict_on(artifact, throughput=throughput))
        return artifact.artifact_id


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    async with (
        await KernelManager.open(folder / "library") as manager,
        served(manager, UrzaConfig.model_validate({"root": folder} | settings)) as address,
        UrzaClient(address) as client,
        aiohttp.ClientSession() as raw,
    ):
        yield Service(address, manager, client, raw)
