"""Builds that wait hear again where they stand, and not more often than they should."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.contracts.events import CompilationEvent
from esper.contracts.kernel import BuildSpec
from esper.contracts.topics import COMPILATIONS
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.outbox import Announcement
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def library(tmp_path: Path, clock: ManualClock) -> AsyncIterator[KernelManager]:
    async with await KernelManager.open(tmp_path / "library", clock=clock) as opened:
        yield opened


async def heard(library: KernelManager) -> list[tuple[str, int | None, float | None]]:
    """Return what waits to be told of queued builds, and forget all that waits."""
    waiting = await library.outbox.waiting(10_000)
    await library.outbox.sent([number for number, *_ in waiting])
    events = [
        one.message for _, stream, one in waiting if stream == COMPILATIONS.stream and isinstance(one, Announcement)
    ]
    return [
        (event.blueprint_id, event.queue_position, event.eta_s)
        for event in events
        if isinstance(event, CompilationEvent) and event.status == "queued"
    ]


async def queue(library: KernelManager, clock: ManualClock, count: int) -> list[str]:
    for width in range(1, count + 1):
        await library.submit(request_for(adapter(width)))
        clock.advance(0.001)
    await heard(library)
    return [adapter(width).digest for width in range(1, count + 1)]


async def test_who_moves_up_is_told_once(library: KernelManager, clock: ManualClock) -> None:
    _, second, third = await queue(library, clock, 3)
    assert await library.line.tell() == 0, "they were told when they came"
    await library.claim("w", lease_s=60.0)
    assert await library.line.tell() == 2
    assert await heard(library) == [(second, 1, None), (third, 2, None)]
    assert await library.line.tell() == 0


async def test_who_is_passed_or_has_one_less_before_it_is_told(library: KernelManager, clock: ManualClock) -> None:
    first, second = await queue(library, clock, 2)
    await library.submit(request_for(adapter(9), priority=10))
    await heard(library)
    await library.line.tell()
    assert await heard(library) == [(first, 2, None), (second, 3, None)]
    await library.withdraw(adapter(9).digest, BuildSpec())
    await heard(library)
    await library.line.tell()
    assert await heard(library) == [(first, 1, None), (second, 2, None)]


async def test_far_behind_only_a_tenth_of_the_way_is_told(library: KernelManager, clock: ManualClock) -> None:
    waiting = await queue(library, clock, 40)
    await library.claim("w", lease_s=60.0)
    await library.line.tell()
    told = [blueprint for blueprint, *_ in await heard(library)]
    assert told == waiting[1:10], "a step is less than a tenth of the way from the eleventh place on"


async def test_a_time_that_does_not_hold_is_corrected(library: KernelManager, clock: ManualClock) -> None:
    await library.submit(request_for(adapter(1)))
    job = await library.claim("w", lease_s=60.0)
    assert job is not None
    clock.advance(4.0)
    artifact = artifact_of(job.blueprint_id, b"measured")
    await library.complete(job.job_id, "w", artifact, verdict_on(artifact))
    for width in (2, 3):
        await library.submit(request_for(adapter(width)))
        clock.advance(0.001)
    await library.claim("w", lease_s=600.0)
    await library.line.tell()
    await heard(library)
    clock.advance(3.0)
    assert await library.line.tell() == 0, "it comes as was told"
    clock.advance(4.0)
    assert await library.line.tell() == 1
    ((blueprint, position, eta_s),) = await heard(library)
    assert (blueprint, position) == (adapter(3).digest, 1)
    assert eta_s == pytest.approx(4.0), "what is at work is late, and will be done any moment"


async def test_a_store_that_starts_tells_everybody(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path) as before:
        await before.submit(request_for(adapter(1)))
        await heard(before)
    async with await KernelManager.open(tmp_path) as after:
        assert await after.line.tell() == 1
        assert await heard(after) == [(adapter(1).digest, 1, None)]


async def test_while_it_runs_a_claim_is_followed_by_news(
    library: KernelManager, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.services.urza.line.LOOKS_S", 1e6)
    _, second = await queue(library, clock, 2)
    async with library.line:
        await library.claim("w", lease_s=60.0)
        async with asyncio.timeout(30):
            while not (told := await heard(library)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert told == [(second, 1, None)]
