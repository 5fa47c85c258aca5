"""One GiB goes up and down through either store, and the process stays small."""

import subprocess
import sys
from pathlib import Path

import pytest

from esper.testing.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server

LIMIT_MB = 200.0
SCRIPT = """
import asyncio, hashlib, sys
from pathlib import Path
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.s3_blobs import S3Blobs, S3Config

PIECE, COUNT = bytes(range(256)) * 4096, 1024

async def pieces():
    for _ in range(COUNT):
        yield PIECE

async def main(blobs):
    whole = hashlib.sha256()
    for _ in range(COUNT):
        whole.update(PIECE)
    digest = f"sha256:{whole.hexdigest()}"
    await blobs.put_stream(digest, len(PIECE) * COUNT, pieces())
    count = 0
    async for chunk in blobs.stream(digest):
        count += len(chunk)
    assert count == 2**30, count
    # Not ru_maxrss: a child inherits that of the process which started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)

kind, place, *rest = sys.argv[1:]
if kind == "local":
    store = LocalBlobs(Path(place))
else:
    store = S3Blobs(S3Config(bucket=rest[0], endpoint=place, access_key_id=rest[1], secret_access_key=rest[2]))
asyncio.run(main(store))
"""


def peak_mb(*arguments: str) -> float:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


@pytest.mark.slow
def test_a_folder_takes_and_gives_a_gib_in_bounded_memory(tmp_path: Path) -> None:
    assert peak_mb("local", str(tmp_path / "blobs")) < LIMIT_MB


@pytest.mark.slow
def test_a_bucket_takes_and_gives_a_gib_in_bounded_memory(s3_server: S3Server) -> None:
    found = peak_mb("s3", s3_server.url, s3_server.new_bucket(), ACCESS_KEY_ID, SECRET_ACCESS_KEY)
    assert found < LIMIT_MB
