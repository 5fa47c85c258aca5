"""A kernel of one GiB goes up to the service and comes down again, and neither the service nor its caller grows with it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esper.testing.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3FolderServer
from esper.testing.store_process import StoreProcess

LIMIT_MB = 200.0
SCRIPT = """
import asyncio, hashlib, sys
from pathlib import Path
from esper.services.clients import UrzaClient
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

PIECE, COUNT = bytes(range(256)) * 1024, 4096

async def pieces():
    for _ in range(COUNT):
        yield PIECE

async def main(url, folder):
    whole = hashlib.sha256()
    for _ in range(COUNT):
        whole.update(PIECE)
    digest, size = f"sha256:{whole.hexdigest()}", len(PIECE) * COUNT
    head = artifact_of(adapter().digest, b"").model_copy(update={"artifact_id": digest})
    async with UrzaClient(url) as client:
        await client.submit(request_for(adapter()))
        await client.upload(digest, size, pieces())
        await client.register_uploaded(head)
        await client.store_report(verdict_on(head))
        assert (await client.get_kernel(digest)).size_bytes == size == 2**30
        assert await client.download(digest, folder / "whole") == size
        async with client.stream(digest, size - 1000) as end:
            assert b"".join([piece async for piece in end]) == PIECE[-1000:]
        stored = await client.upload_bytes(folder / "whole")
        assert (stored.digest, stored.size_bytes) == (digest, size)

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
print(Path("/proc/self/status").read_text())
"""


def peak_mb(status: str) -> float:
    # Not ru_maxrss: a child inherits that of the process which started it.
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def settings_of(bytes_in: str, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the settings that let a service keep bytes in its folder, or in a bucket whose server keeps them in files."""
    if bytes_in == "folder":
        yield {}
        return
    folder.mkdir()
    with S3FolderServer(folder) as server:
        yield {
            "ESPER_URZA_S3_BUCKET": server.new_bucket(),
            "ESPER_URZA_S3_ENDPOINT": server.url,
            "ESPER_URZA_S3_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "ESPER_URZA_S3_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bytes_in", ["folder", "bucket"])
def test_a_gib_goes_both_ways_in_bounded_memory(bytes_in: str, tmp_path: Path) -> None:
    with settings_of(bytes_in, tmp_path / "s3") as settings, StoreProcess(tmp_path, settings=settings) as service:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, service.url, str(tmp_path)], capture_output=True, text=True, timeout=560
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert peak_mb(done.stdout) < LIMIT_MB, "the caller"
        assert peak_mb(Path(f"/proc/{service.pid}/status").read_text()) < LIMIT_MB, "the service"
    shutil.rmtree(tmp_path)  # pytest keeps such folders for a while, and these are three GiB


@pytest.mark.slow
def test_a_caller_that_holds_what_it_sends_would_be_seen() -> None:
    held = "from pathlib import Path; held = bytes(range(256)) * 2**20; print(Path('/proc/self/status').read_text())"
    done = subprocess.run([sys.executable, "-c", held], capture_output=True, text=True, timeout=60, check=True)
    assert peak_mb(done.stdout) > LIMIT_MB
