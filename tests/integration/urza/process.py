"""The service as a process of its own."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from esper.testing.server import free_port


@asynccontextmanager
async def process(
    folder: Path, *options: str, **settings: object
) -> AsyncIterator[tuple[int, "subprocess.Popen[bytes]", Path]]:
    """Run the service with options and settings; yield port, process and log."""
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "esper.cli", "serve", "urza", "--port", str(port), "--root", str(folder / "lib")]
    told = {f"ESPER_URZA_{name.upper()}": str(value) for name, value in settings.items()}
    with log.open("wb") as output:
        running = subprocess.Popen(  # noqa: ASYNC220
            [*command, "--json", *options], stdout=output, stderr=output, cwd=folder, env=os.environ | told
        )
    try:
        async with asyncio.timeout(60):
            while not listens(port):
                assert running.poll() is None, log.read_text()
                await asyncio.sleep(0.05)
        yield port, running, log
    finally:
        running.kill()
        running.wait(10)


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
