"""What nobody waits for is turned to once no build has been at work for a while, and now and then all the same."""

import asyncio

import pytest

from esper.contracts.kernel import BuildSpec, CompileJob, JobPhase
from esper.services.tezzeret import quiet
from esper.services.tezzeret.quiet import Quiet


def job(phase: JobPhase) -> CompileJob:
    return CompileJob(
        job_id="j",
        blueprint_id="b",
        name="n",
        architecture_ir={},
        build=BuildSpec(),
        priority=5,
        attempt=1,
        phase=phase,
    )


async def test_it_has_come_where_nothing_was_built_yet() -> None:
    assert Quiet(0.5).has_come
    assert Quiet(0.5).admits_any()


async def test_it_comes_some_time_after_the_last_build_and_never_during_one() -> None:
    rest = Quiet(0.2)
    with rest.during(job(JobPhase.BUILD)):
        await asyncio.sleep(0.25)
        assert not rest.has_come
    assert not rest.has_come
    await asyncio.sleep(0.25)
    assert rest.has_come


async def test_jobs_that_finish_a_kernel_do_not_end_it() -> None:
    rest = Quiet(60.0)
    with rest.during(job(JobPhase.FINISH)):
        assert rest.has_come
    assert rest.has_come


async def test_any_job_will_do_now_and_then_however_many_builds_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "ANY_EVERY_S", 0.2)
    rest = Quiet(60.0)
    with rest.during(job(JobPhase.BUILD)):
        assert [rest.admits_any() for _ in range(3)] == [True, False, False]
        await asyncio.sleep(0.25)
        assert rest.admits_any()
