"""A process that is killed while it holds messages: another one takes them over."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading
from esper.testing.servers import RedisServer

WORKER = """
import asyncio, sys
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig

async def work(delivery):
    if delivery.body["n"] == 3:
        print("holds", flush=True)
        await asyncio.Event().wait()

async def main():
    async with RedisBus(RedisBusConfig(url=sys.argv[1], claim_idle_s=0.5)) as bus:
        await bus.subscribe(sys.argv[2], "readers", work, start_from="0")

asyncio.run(main())
"""


@contextmanager
def started(server: RedisServer) -> Iterator["subprocess.Popen[bytes]"]:
    source = str(Path(__file__).parents[2] / "src")
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, server.url, STREAM],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": source},
    )
    with worker:
        try:
            yield worker
        finally:
            worker.kill()


async def test_what_a_killed_process_held_is_taken_over_and_nothing_is_lost(redis_server: RedisServer) -> None:
    config = RedisBusConfig(url=redis_server.url, claim_idle_s=0.5, block_s=0.05)
    async with RedisBus(config) as bus:
        for n in range(10):
            await bus.publish(STREAM, {"n": n})
        with started(redis_server) as worker:
            assert worker.stdout is not None
            async with asyncio.timeout(LIMIT_S):
                assert await asyncio.to_thread(worker.stdout.readline) == b"holds\n"
            reader = Reader()
            async with Reading(bus, reader):
                await asyncio.sleep(1.2)
                assert not reader.deliveries, "a living member keeps what it holds"
                worker.kill()
                await reader.wait_for(7)
    assert reader.numbers == [3, 4, 5, 6, 7, 8, 9]
