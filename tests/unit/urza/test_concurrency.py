"""Many writers at once, each with connections of its own, as several processes have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from esper.contracts.adaptation import Outcome, Verdict
from esper.contracts.kernel import BlueprintContract, BlueprintSubmissionRequest, KernelStatus
from esper.contracts.store import BlueprintQuery, KernelQuery
from esper.errors import Conflict
from esper.ir import digest_of
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

WRITERS = 4


@pytest.fixture
async def writers(database_url: str, tmp_path: Path) -> AsyncIterator[list[KernelManager]]:
    async with AsyncExitStack() as stack:
        blobs = LocalBlobs(tmp_path / "blobs")
        yield [await stack.enter_async_context(await KernelManager.at(database_url, blobs)) for _ in range(WRITERS)]


def design(width: int, *tags: str) -> BlueprintContract:
    return BlueprintContract(
        blueprint_id="", name="one name", architecture_ir=adapter(width).to_json(), tags=list(tags)
    )


async def test_versions_of_a_name_are_counted_without_gap_or_double(writers: list[KernelManager]) -> None:
    designs = range(1, 25)
    await asyncio.gather(*(writers[width % WRITERS].store_blueprint(design(width)) for width in designs))
    page = await writers[0].search_blueprints(BlueprintQuery(limit=200))
    assert [one.version for one in page.blueprints] == list(designs)
    assert {one.blueprint_id for one in page.blueprints} == {adapter(width).digest for width in designs}


async def test_submissions_from_all_sides_make_a_blueprint_and_a_job_for_each_design(
    writers: list[KernelManager],
) -> None:
    designs = range(1, 13)

    def asked(number: int, width: int) -> BlueprintSubmissionRequest:
        request = request_for(adapter(width), tags=(f"by{number}",), priority=1 + number)
        return request.model_copy(update={"name": "one name"})

    answers = await asyncio.gather(
        *(writer.submit(asked(n, width)) for width in designs for n, writer in enumerate(writers))
    )
    assert {answer.status for answer in answers} == {"queued"}
    found = (await writers[0].search_blueprints(BlueprintQuery(limit=200))).blueprints
    assert sorted(one.version for one in found) == list(designs)
    assert {one.blueprint_id for one in found} == {adapter(width).digest for width in designs}
    assert {tuple(one.tags) for one in found} == {tuple(f"by{n}" for n in range(WRITERS))}
    jobs = [await writers[n % WRITERS].claim("w", lease_s=60.0) for n in range(len(designs) + 1)]
    assert jobs[-1] is None
    assert {job.blueprint_id for job in jobs[:-1] if job is not None} == {one.blueprint_id for one in found}
    assert {job.priority for job in jobs[:-1] if job is not None} == {WRITERS}, "the most urgent of those who asked"


async def test_an_equal_design_from_all_sides_is_one_blueprint_with_every_tag(writers: list[KernelManager]) -> None:
    ids = await asyncio.gather(*(writer.store_blueprint(design(1, f"t{n}")) for n, writer in enumerate(writers * 3)))
    assert set(ids) == {adapter(1).digest}
    (found,) = (await writers[0].search_blueprints(BlueprintQuery())).blueprints
    assert (found.version, found.tags) == (1, sorted(f"t{n}" for n in range(WRITERS * 3)))


async def test_a_kernel_has_every_tag_though_tags_and_kernels_came_at_once(writers: list[KernelManager]) -> None:
    count = 6
    for width in range(1, count + 1):
        await writers[0].submit(request_for(adapter(width)))

    async def forge(writer: KernelManager) -> None:
        while (job := await writer.claim(f"w{id(writer)}", lease_s=60.0)) is not None:
            artifact = artifact_of(job.blueprint_id, job.blueprint_id.encode())
            await writer.complete(job.job_id, f"w{id(writer)}", artifact, verdict_on(artifact))

    async def tag(writer: KernelManager) -> None:
        for width in range(1, count + 1):
            await writer.store_blueprint(design(width, "late"))

    await asyncio.gather(forge(writers[0]), tag(writers[1]), forge(writers[2]))
    found = (await writers[3].search(KernelQuery(tags=["late"], status=KernelStatus.VALIDATED))).kernels
    assert len(found) == count


async def test_a_job_is_completed_by_one_of_those_who_try(writers: list[KernelManager]) -> None:
    await writers[0].submit(request_for(adapter()))
    job = await writers[0].claim("w", lease_s=60.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"bytes")
    tries = [writer.complete(job.job_id, "w", artifact, verdict_on(artifact)) for writer in writers]
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(end, BaseException) for end in ends) == 1
    assert all(isinstance(end, Conflict) for end in ends if isinstance(end, BaseException))


async def test_outcomes_are_counted_once_and_the_last_verdict_holds(writers: list[KernelManager]) -> None:
    kernel = digest_of(b"kernel")

    def outcome(number: int, verdict: Verdict, gain: float | None) -> Outcome:
        return Outcome(
            decision_id=f"d{number}", run_id="r", slot="s", seed_idx=0, blueprint="b", kernel_id=kernel,
            verdict=verdict, gain=gain, gain_error=None, params=1, steps=1,
        )  # fmt: skip

    first = [outcome(1, Verdict.KEPT, 0.5), outcome(2, Verdict.KEPT, 0.1), outcome(3, Verdict.CULLED, None)]
    await asyncio.gather(*(writer.report(one) for writer in writers for one in first))
    await writers[0].report(outcome(2, Verdict.ROLLED_BACK, -0.1))
    found = await writers[1].kernel_statistics(kernel)
    assert (found.kept, found.culled, found.rolled_back, found.cancelled) == (1, 1, 1, 0)
    assert found.measured == 2
    assert found.mean_gain == pytest.approx(0.2)
