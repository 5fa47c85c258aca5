"""Whose turn it is: the more urgent first, and nobody waits for ever."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts.events import CompilationEvent
from esper.contracts.kernel import BuildSpec
from esper.contracts.topics import COMPILATIONS
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.queueing import AGEING_S
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

ARRIVALS = st.lists(st.tuples(st.integers(1, 10), st.floats(0.5, 200.0)), min_size=2, max_size=12)


async def served(arrivals: list[tuple[int, float]], claims_after: list[bool]) -> list[tuple[int, float, float]]:
    """Let jobs arrive, claim one after some of them, then the rest; return priority, arrival and claim of each, as claimed."""
    clock = ManualClock()
    with tempfile.TemporaryDirectory() as root:
        async with await KernelManager.open(Path(root), clock=clock) as library:
            jobs: dict[str, tuple[int, float]] = {}
            order: list[tuple[int, float, float]] = []

            async def claim() -> None:
                job = await library.claim("w", lease_s=60.0)
                if job is not None:
                    order.append((*jobs[job.blueprint_id], clock.now_s()))
                    await library.fail(job.job_id, "w", "it was served", retry=False)

            for width, ((priority, gap), claims) in enumerate(zip(arrivals, claims_after, strict=True), start=1):
                clock.advance(gap)
                jobs[adapter(width).digest] = (priority, clock.now_s())
                await library.submit(request_for(adapter(width), priority=priority))
                if claims:
                    await claim()
            while len(order) < len(jobs):
                await claim()
            return order


@given(arrivals=ARRIVALS, data=st.data())
@settings(max_examples=12)
def test_who_is_passed_is_less_urgent_and_never_by_one_who_came_much_later(
    arrivals: list[tuple[int, float]], data: st.DataObject
) -> None:
    claims = [data.draw(st.booleans()) for _ in arrivals]
    order = asyncio.run(served(arrivals, claims))
    for index, (priority, came_s, claimed_s) in enumerate(order):
        for other, other_came_s, _ in order[index + 1 :]:
            if other_came_s > claimed_s:
                continue  # it was not there yet
            late_s = came_s - other_came_s
            assert (priority - other) * AGEING_S >= late_s, (
                "who came later is served first only where it is more urgent"
            )
            assert late_s <= 9 * AGEING_S


async def test_the_wait_follows_the_level_and_what_is_ahead(tmp_path: Path) -> None:
    clock = ManualClock()
    async with await KernelManager.open(tmp_path, clock=clock) as library:
        first = await library.submit(request_for(adapter(1)))
        assert first.estimated_compilation_time_s is None, "nothing was measured"
        for width, level, took_s in ((1, "O0", 2.0), (2, "O1", 10.0)):
            await library.submit(request_for(adapter(width), build=BuildSpec(level=level)))
            job = await library.claim("w", lease_s=60.0)
            assert job is not None
            clock.advance(took_s)
            artifact = artifact_of(job.blueprint_id, str(width).encode())
            await library.complete(job.job_id, "w", artifact, verdict_on(artifact))
        quick = await library.submit(request_for(adapter(3)))
        clock.advance(0.001)
        slow = await library.submit(request_for(adapter(4), build=BuildSpec(level="O1")))
        clock.advance(0.001)
        unknown = await library.submit(request_for(adapter(5), build=BuildSpec(level="O3")))
        assert [one.queue_position for one in (quick, slow, unknown)] == [1, 2, 3]
        assert [one.estimated_compilation_time_s for one in (quick, slow, unknown)] == [2.0, 12.0, None]
        for _ in range(2):
            await library.claim("w", lease_s=60.0)
        clock.advance(1.0)
        behind = await library.submit(request_for(adapter(6), priority=9))
        assert behind.estimated_compilation_time_s == pytest.approx((1.0 + 9.0) / 2 + 2.0), "two are at work"


async def test_what_waits_is_announced_with_its_place_and_when_to_expect_it(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path) as library:
        for width in (1, 2):
            await library.submit(request_for(adapter(width)))
        await library.withdraw(adapter(1).digest, BuildSpec())
        told = [one.message for _, stream, one in await library.outbox.waiting(10) if stream == COMPILATIONS.stream]  # type: ignore[union-attr]
    assert told == [
        CompilationEvent(blueprint_id=adapter(1).digest, status="queued", queue_position=1),
        CompilationEvent(blueprint_id=adapter(2).digest, status="queued", queue_position=2),
        CompilationEvent(blueprint_id=adapter(1).digest, status="withdrawn", reason="it was withdrawn"),
    ]


async def test_a_build_of_an_earlier_process_is_not_made_again(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path) as library:
        await asyncio.gather(*(library.submit(request_for(adapter())) for _ in range(5)))
        job = await library.claim("w", lease_s=60.0)
        assert job is not None
        artifact = artifact_of(job.blueprint_id, b"made once")
        await library.complete(job.job_id, "w", artifact, verdict_on(artifact))
    async with await KernelManager.open(tmp_path) as library:
        assert (await library.submit(request_for(adapter()))).status == "done"
        assert await library.claim("w", lease_s=60.0) is None
        kernel = await library.find(adapter().digest, BuildSpec())
        assert kernel is not None
        assert await library.read(kernel.kernel_id) == b"made once"
