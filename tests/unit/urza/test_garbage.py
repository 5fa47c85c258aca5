"""What nothing refers to goes, what somebody needs stays, whoever comes first."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import Column, ForeignKey, String, Table, text
from sqlalchemy.exc import IntegrityError

from esper.contracts.kernel import BuildSpec, CompiledKernelContract, KernelStatus
from esper.errors import Conflict, KernelRejected, NotFound
from esper.ir import digest_of
from esper.services.urza.base import Base
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.database import Database, engine_at
from esper.services.urza.garbage import Collected, GarbageCollector, RetentionConfig
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, form_of, request_for, verdict_on

DAY_S = 86_400.0


class SlowBlobs(LocalBlobs):
    """A folder that takes its time to remove things, and so lets others in between."""

    async def delete(self, digest: str) -> None:
        await asyncio.sleep(0.02)
        await super().delete(digest)
        await asyncio.sleep(0.02)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(4_000_000_000.0)  # later than any file here


@pytest.fixture
def blobs(tmp_path: Path) -> SlowBlobs:
    return SlowBlobs(tmp_path / "blobs")


@pytest.fixture
async def library(database_url: str, blobs: SlowBlobs, clock: ManualClock) -> AsyncIterator[KernelManager]:
    async with await KernelManager.at(database_url, blobs, clock=clock) as manager:
        yield manager


@pytest.fixture
async def collector(
    library: KernelManager, database_url: str, blobs: SlowBlobs, clock: ManualClock
) -> AsyncIterator[GarbageCollector]:
    engine = engine_at(database_url)
    yield GarbageCollector(Database(engine), blobs, clock, RetentionConfig(rejected_s=DAY_S, retired_s=DAY_S))
    await engine.dispose()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def made(library: KernelManager, width: int, *, reasons: tuple[str, ...] = ()) -> CompiledKernelContract:
    await library.submit(request_for(adapter(width)))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, bytes([width]) * 50)
    return await library.complete(job.job_id, "w", artifact, verdict_on(artifact, reasons=reasons))


async def has(blobs: LocalBlobs, digest: str) -> bool:
    try:
        return bool(await blobs.size(digest))
    except NotFound:
        return False


async def test_bytes_that_nothing_refers_to_go_after_the_grace_and_no_others(
    library: KernelManager, collector: GarbageCollector, blobs: SlowBlobs, clock: ManualClock
) -> None:
    kernel = await made(library, 1)
    orphan = digest_of(b"orphan")
    await library.upload(orphan, 6, pieces(b"orphan"))
    clock.advance(DAY_S)
    assert (await collector.collect()).blobs == 0
    clock.advance(1)
    done = await collector.collect()
    assert (done.blobs, done.size_bytes, done.kernels) == (1, 6, 0)
    assert not await has(blobs, orphan)
    assert await library.read(kernel.kernel_id)


async def test_forms_are_kept_as_long_as_their_kernel_and_those_that_were_replaced_go(
    library: KernelManager, collector: GarbageCollector, blobs: SlowBlobs, clock: ManualClock
) -> None:
    await library.submit(request_for(adapter(), build=BuildSpec(level="O3")))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"kernel")
    kernel = await library.complete(job.job_id, "w", artifact, verdict_on(artifact))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    await library.finish(job.job_id, "w", [form_of(b"old"), form_of(b"plain", backend="eager"), form_of(b"new")])
    clock.advance(2 * DAY_S)
    assert (await collector.collect()).blobs == 1
    assert not await has(blobs, digest_of(b"old"))
    for kept in await library.forms(kernel.kernel_id):
        assert digest_of(await library.read_form(kernel.kernel_id, kept.form.digest)) == kept.form.digest
    await library.set_kernel_status(kernel.kernel_id, KernelStatus.RETIRED)
    clock.advance(2 * DAY_S)
    assert (await collector.collect()).blobs == 3
    await library.submit(request_for(adapter(), build=BuildSpec(level="O3")))
    assert await library.claim("w", lease_s=30.0) is not None


async def test_bytes_without_a_row_are_garbage_too(
    library: KernelManager, collector: GarbageCollector, blobs: SlowBlobs
) -> None:
    stray = await blobs.put(b"of a database that was lost")
    assert (await collector.collect()).blobs == 1
    assert not await has(blobs, stray)


async def test_refused_and_withdrawn_kernels_go_when_they_are_old_and_can_be_built_again_or_tell_why_not(
    library: KernelManager, collector: GarbageCollector, blobs: SlowBlobs, clock: ManualClock, database_url: str
) -> None:
    sound, refused, retired = await made(library, 1), await made(library, 2, reasons=("off",)), await made(library, 3)
    await library.set_kernel_status(retired.kernel_id, KernelStatus.RETIRED)
    clock.advance(3 * DAY_S)
    done = await collector.collect()
    assert (done.kernels, done.blobs) == (2, 2)
    assert await library.find(sound.blueprint_id, BuildSpec()) == sound
    with pytest.raises(KernelRejected, match="off"):
        await library.find(refused.blueprint_id, BuildSpec())
    assert await library.find(retired.blueprint_id, BuildSpec()) is None
    await library.submit(request_for(adapter(3)))
    assert await library.claim("w", lease_s=30.0) is not None
    engine = engine_at(database_url)
    async with engine.connect() as connection:
        left = (await connection.execute(text("SELECT DISTINCT kernel_id FROM kernel_terms"))).scalars().all()
    await engine.dispose()
    assert left == [sound.kernel_id]


Sweep = Callable[[GarbageCollector, str], Awaitable[int | None]]
COUNT = 5


async def raced(
    library: KernelManager, collector: GarbageCollector, clock: ManualClock, patch: pytest.MonkeyPatch, sweep: Sweep
) -> list[str]:
    """Complete kernels whose very bytes a sweep has found to be garbage, but did not remove yet; return the kernels."""
    found, gate = asyncio.Event(), asyncio.Event()

    async def held(of: GarbageCollector, digest: str) -> int | None:
        found.set()
        await gate.wait()
        return await sweep(of, digest)

    patch.setattr(GarbageCollector, "_sweep", held)
    for width in range(1, COUNT + 1):
        await library.upload(digest_of(bytes([width]) * 50), 50, pieces(bytes([width]) * 50))
    clock.advance(2 * DAY_S)
    sweeping = asyncio.ensure_future(collector.collect())
    await found.wait()
    kernels = [await made(library, width) for width in range(1, COUNT + 1)]
    gate.set()
    await sweeping
    return [kernel.kernel_id for kernel in kernels]


async def test_bytes_that_somebody_came_to_need_while_they_were_garbage_stay(
    library: KernelManager, collector: GarbageCollector, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = GarbageCollector._sweep
    for kernel_id in await raced(library, collector, clock, monkeypatch, sweep):
        assert await library.read(kernel_id)


async def test_a_sweep_that_does_not_look_again_is_noticed(
    library: KernelManager,
    collector: GarbageCollector,
    blobs: SlowBlobs,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def careless(_: GarbageCollector, digest: str) -> int:
        await blobs.delete(digest)
        return 1

    kernels = await raced(library, collector, clock, monkeypatch, careless)
    assert not any([await has(blobs, kernel_id) for kernel_id in kernels])


async def test_whoever_puts_bytes_while_they_are_removed_has_them_in_the_end(
    library: KernelManager, collector: GarbageCollector, clock: ManualClock
) -> None:
    for width in range(1, COUNT + 1):
        await library.upload(digest_of(bytes([width]) * 50), 50, pieces(bytes([width]) * 50))
    clock.advance(2 * DAY_S)
    sweeping = asyncio.ensure_future(collector.collect())
    kernels = await asyncio.gather(*(made(library, width) for width in range(1, COUNT + 1)))
    await sweeping
    for kernel in kernels:
        assert await library.read(kernel.kernel_id)


async def test_two_collectors_at_once_remove_everything_once(
    library: KernelManager, collector: GarbageCollector, clock: ManualClock
) -> None:
    for number in range(5):
        data = bytes([number]) * 9
        await library.upload(digest_of(data), 9, pieces(data))
    clock.advance(2 * DAY_S)
    first, second = await asyncio.gather(collector.collect(), collector.collect())
    assert first.blobs + second.blobs == 5


async def test_a_preview_tells_what_a_collection_then_removes_and_changes_nothing(
    library: KernelManager, collector: GarbageCollector, blobs: SlowBlobs, clock: ManualClock
) -> None:
    kept, rejected, retired = (
        await made(library, 1), await made(library, 2, reasons=("off",)), await made(library, 3),
    )  # fmt: skip
    await library.set_kernel_status(retired.kernel_id, KernelStatus.RETIRED)
    await library.upload(digest_of(b"orphan"), 6, pieces(b"orphan"))
    stray = await blobs.put(b"stray")
    clock.advance(10 * DAY_S)
    told = await collector.preview()
    assert (told.kernels, told.blobs, told.size_bytes) == (2, 4, 50 + 50 + 6 + 5)
    assert [await has(blobs, key) for key in (rejected.kernel_id, retired.kernel_id, stray)] == [True, True, True]
    assert await collector.collect() == told
    assert [await has(blobs, key) for key in (rejected.kernel_id, retired.kernel_id, stray)] == [False, False, False]
    assert await has(blobs, kept.kernel_id)
    assert await collector.preview() == Collected(kernels=0, blobs=0, size_bytes=0, answers=0)


async def test_bytes_that_any_table_refers_to_stay(
    library: KernelManager, collector: GarbageCollector, blobs: SlowBlobs, clock: ManualClock, database_url: str
) -> None:
    """A table of tomorrow refers to bytes, and collectors that know it leave them; those that do not are stopped."""
    forms = Table(
        "forms", Base.metadata, Column("id", String, primary_key=True), Column("ref", String(71), ForeignKey("blobs.digest"))
    )  # fmt: skip
    engine = engine_at(database_url)
    try:
        await library.upload(digest_of(b"form"), 4, pieces(b"form"))
        async with engine.begin() as connection:
            await connection.run_sync(forms.create)
            await connection.execute(forms.insert().values(id="a", ref=digest_of(b"form")))
        clock.advance(10 * DAY_S)
        assert (await collector.preview()).blobs == 0
        assert (await collector.collect()).blobs == 0
        assert await has(blobs, digest_of(b"form"))
        Base.metadata.remove(forms)
        with pytest.raises((Conflict, IntegrityError)):
            await collector.collect()
        assert await has(blobs, digest_of(b"form"))
    finally:
        if forms.name in Base.metadata.tables:
            Base.metadata.remove(forms)
        await engine.dispose()
