"""A store that is killed at any step: no announcement without its blueprint, no blueprint without its announcement.

A child process submits blueprints and relays what it announces to a real Redis; it kills itself at a certain step of a certain
blueprint. What the next process finds in the database, and what arrived on the bus in the end, must be the same blueprints.
"""

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from esper.contracts.events import BlueprintSubmitted
from esper.contracts.topics import SUBMITTED
from esper.ports import Delivery
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.database import engine_at
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.outbox import OutboxRelay, OutboxRelayConfig
from esper.testing.servers import RedisServer

LIMIT_S = 60.0
CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from sqlalchemy import Engine, event
from esper.contracts.events import BlueprintSubmitted
from esper.contracts.topics import SUBMITTED
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.urza import catalogue
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.outbox import Outbox, OutboxRelay, OutboxRelayConfig
from esper.testing.forging import adapter, request_for

url, redis, folder, step, nth = *sys.argv[1:5], int(sys.argv[5])
seen, forgetting = 0, False

def here(name):
    global seen
    seen += name == step
    if name == step and seen == nth:
        os.kill(os.getpid(), signal.SIGKILL)

def watched(owner, name, before="", after=""):
    method = getattr(owner, name)
    if asyncio.iscoroutinefunction(method):
        async def around(*args, **kwargs):
            here(before)
            result = await method(*args, **kwargs)
            here(after)
            return result
    else:
        def around(*args, **kwargs):
            here(before)
            result = method(*args, **kwargs)
            here(after)
            return result
    setattr(owner, name, around)

watched(catalogue, "_ensured", before="before the row", after="after the row")
watched(Outbox, "write", before="before the announcement", after="after the announcement")
watched(Outbox, "notify", before="after the commit")
watched(RedisBus, "publish", before="before publishing", after="after publishing")
forget = Outbox.sent

async def sent(self, number):
    global forgetting
    forgetting = True
    await forget(self, number)
    forgetting = False
    here("after forgetting")

Outbox.sent = sent

async def main():
    bus = RedisBus(RedisBusConfig(url=redis))
    async with await KernelManager.at(url, LocalBlobs(Path(folder))) as manager, bus:
        event.listen(Engine, "commit",
                     lambda _: here("while forgetting" if forgetting else "while committing"))
        if step == "event without row":
            async def told(self, request):
                await bus.publish(SUBMITTED.stream, BlueprintSubmitted(blueprint_id=adapter(99).digest))
                os.kill(os.getpid(), signal.SIGKILL)
            KernelManager.submit = told
        if step == "row without event":
            def nothing(*_): ...
            Outbox.write = nothing
        async with OutboxRelay(manager.outbox, bus, OutboxRelayConfig(poll_s=0.05)):
            for width in range(1, 6):
                response = await manager.submit(request_for(adapter(width)))
                print(response.blueprint_id, flush=True)
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

STEPS = (
    "before the row", "after the row", "before the announcement", "after the announcement", "while committing",
    "after the commit", "before publishing", "after publishing", "while forgetting", "after forgetting",
)  # fmt: skip
PLANTED = ("event without row", "row without event")


@dataclass(frozen=True)
class Aftermath:
    """What is left: blueprints that were acknowledged, that are stored, and that were announced."""

    acknowledged: set[str]
    stored: set[str]
    announced: set[str]

    @property
    def is_sound(self) -> bool:
        """Whether nothing was lost and nothing invented."""
        return self.acknowledged <= self.stored == self.announced


async def aftermath(url: str, server: RedisServer, folder: Path, step: str, nth: int) -> Aftermath:
    """Let a child die at a step, let the next process relay what waits, and look at what there is."""
    server.ask("FLUSHALL")
    source = str(Path(__file__).parents[2] / "src")
    child = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-c", CHILD, url, server.url, str(folder), step, str(nth)],
        capture_output=True, text=True, timeout=LIMIT_S, env=os.environ | {"PYTHONPATH": source},
    )  # fmt: skip
    assert child.returncode == -9, child.stderr[-2000:]
    announced: set[str] = set()
    heard_all = asyncio.Event()

    async def hear(delivery: Delivery) -> None:
        assert isinstance(delivery.body, BlueprintSubmitted)
        announced.add(delivery.body.blueprint_id)
        if delivery.body.blueprint_id == "the last":
            heard_all.set()

    async with (
        await KernelManager.at(url, LocalBlobs(folder)) as manager,
        RedisBus(RedisBusConfig(url=server.url, block_s=0.05)) as bus,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(bus.subscribe(SUBMITTED.stream, "checker", hear, start_from="0"))
        async with OutboxRelay(manager.outbox, bus, OutboxRelayConfig(poll_s=0.05)), asyncio.timeout(LIMIT_S):
            while await manager.outbox.waiting(1):  # noqa: ASYNC110 - the relay tells nobody that it is through
                await asyncio.sleep(0.02)
        await bus.publish(SUBMITTED.stream, BlueprintSubmitted(blueprint_id="the last"))
        async with asyncio.timeout(LIMIT_S):
            await heard_all.wait()
        await bus.close()
    return Aftermath(set(child.stdout.split()), await stored(url), announced - {"the last"})


async def stored(url: str) -> set[str]:
    engine = engine_at(url)
    async with engine.connect() as connection:
        found = set(await connection.scalars(text("SELECT id FROM blueprints")))
    await engine.dispose()
    return found


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("step", STEPS)
async def test_nothing_is_lost_or_invented_whichever_step_a_store_is_killed_at(
    database_url: str, redis_server: RedisServer, tmp_path: Path, step: str
) -> None:
    for nth in (1, 3):
        left = await aftermath(database_url, redis_server, tmp_path / "blobs", step, nth)
        assert left.acknowledged <= left.stored, f"acknowledged and lost at the {nth}. time"
        # The second child finds the blueprints of the first: their announcements went out before.
        assert left.announced <= left.stored, f"announced and not there at the {nth}. time"
        assert nth > 1 or left.is_sound


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("fault", PLANTED)
async def test_a_store_that_announces_by_itself_is_noticed(
    database_url: str, redis_server: RedisServer, tmp_path: Path, fault: str
) -> None:
    assert not (await aftermath(database_url, redis_server, tmp_path / "blobs", fault, 1)).is_sound
