"""Decisions and outcomes of an embedded run that is killed are found again by the next one."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from esper.assembly import advisor_named, embedded
from esper.contracts.adaptation import AdaptationDecision
from esper.contracts.health import HealthBatch
from esper.contracts.topics import DECISIONS, HEALTH, OUTCOMES
from esper.testing.bus_readers import LIMIT_S, Reader, Reading

RUN = """
import asyncio, sys
from esper.assembly import advisor_named, embedded
from esper.contracts.adaptation import AdaptationDecision
from esper.contracts.health import HealthBatch
from esper.contracts.topics import DECISIONS, HEALTH, OUTCOMES

async def hold(delivery):
    print("holds", flush=True)
    await asyncio.Event().wait()

async def main():
    async with embedded(sys.argv[1], advisor_named("plateau")) as services:
        bus = services.bus
        reading = asyncio.ensure_future(bus.subscribe(DECISIONS.stream, "late", hold, start_from="0"))
        await bus.publish(HEALTH.stream, HealthBatch(run_id="killed", step=1, signals=()), run_id="killed")
        for reason in ("first", "second"):
            print(await bus.publish(DECISIONS.stream, AdaptationDecision(reason=reason), run_id="killed"), flush=True)
        await reading

asyncio.run(main())
"""


async def killed_run(root: Path) -> list[str]:
    """Let a process publish two decisions, kill it while a reader holds the first, and return their ids."""
    source = str(Path(__file__).parents[2] / "src")
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, str(root)),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert run.stdout is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(6 * LIMIT_S):
            while len(said) < 3:
                said.append((await run.stdout.readline()).decode().strip())
        await asyncio.sleep(0.1)  # that the first was handed out is written a moment later
    finally:
        run.kill()
        await run.wait()
    return [line for line in said if line != "holds"]


async def test_decisions_of_a_killed_run_are_read_on_by_the_next_and_not_counted_as_its_own(tmp_path: Path) -> None:
    ids = await killed_run(tmp_path)
    reader, health = Reader(), Reader()
    async with embedded(tmp_path, advisor_named("plateau"), run_id="next") as services:
        async with (
            Reading(services.bus, reader, stream=DECISIONS.stream, group="late", start=">"),
            Reading(services.bus, health, stream=HEALTH.stream, group="late"),
        ):
            deliveries = await reader.wait_for(2)
            await services.bus.publish(DECISIONS.stream, AdaptationDecision(reason="own"), run_id="next")
            await reader.wait_for(3)
        assert [delivery.id for delivery in deliveries[:2]] == ids
        assert [delivery.redelivered for delivery in deliveries[:2]] == [True, False]
        assert {delivery.run_id for delivery in deliveries[:2]} == {"killed"}
        assert not health.deliveries, "what may be dropped is not journaled"
    assert services.counts()["messages"] == {DECISIONS.stream: 1}


async def test_two_processes_below_one_root_have_a_journal_each(tmp_path: Path) -> None:
    first, second = Reader(), Reader()
    advisor = advisor_named("plateau")
    async with (
        embedded(tmp_path, advisor) as one,
        embedded(tmp_path, advisor) as other,
        Reading(one.bus, first, stream=OUTCOMES.stream),
        Reading(other.bus, second, stream=DECISIONS.stream),
    ):
        await one.bus.publish(DECISIONS.stream, AdaptationDecision(reason="no"))
        await other.bus.publish(DECISIONS.stream, AdaptationDecision(reason="no"))
        await second.wait_for(1)
    assert len(second.deliveries) == 1
    assert sorted(path.name for path in (tmp_path / "bus").glob("*.journal")) == ["alone-0.journal", "alone-1.journal"]
    batch = HealthBatch(run_id="r", step=0, signals=())
    async with embedded(tmp_path, advisor) as again:
        await again.bus.publish(HEALTH.stream, batch)
    assert len(list((tmp_path / "bus").glob("*.journal"))) == 2
