"""A store that needs keys, and what callers send who mean no good."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.typedefs import LooseHeaders
from yarl import URL

from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.store_server import served

ZERO = "sha256:" + "0" * 64


@dataclass
class Target:
    """A store that needs keys, with one key of each scope."""

    address: str
    manager: KernelManager
    keys: dict[str, str]
    raw: aiohttp.ClientSession

    async def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = "admin",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> tuple[int, Any, LooseHeaders]:
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {self.keys.get(key, key)}"
        url = URL(self.address + path, encoded=True)
        async with self.raw.request(method, url, headers=sent, **options) as answer:
            body = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            return answer.status, json.loads(body) if "json" in kind and body else body, answer.headers


@asynccontextmanager
async def target(folder: Path, **settings: Any) -> AsyncIterator[Target]:
    config = UrzaConfig.model_validate({"root": folder, "require_keys": True, "requests_per_s": 0} | settings)
    async with await KernelManager.open(folder / "library") as manager, served(manager, config) as address:
        keys = ApiKeys(manager.database)
        made = {scope: (await keys.create(scope, [scope]))[0] for scope in ("read", "write", "admin")}
        async with aiohttp.ClientSession(skip_auto_headers=["User-Agent"]) as raw:
            yield Target(address, manager, made, raw)


async def raw_answer(address: str, data: bytes, *, limit_s: float = 10.0, pause_s: float = 0.0) -> bytes:
    """Send bytes as they are, and return what comes back until the connection ends."""
    url = URL(address)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(limit_s):
            step = 1 if pause_s else max(1, len(data))
            for start in range(0, len(data), step):
                writer.write(data[start : start + step])
                await writer.drain()
                await asyncio.sleep(pause_s)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
