"""What every library and its compile queue must do, as a suite; subclasses give fixtures ``library`` and ``clock``."""

import asyncio

from esper.contracts.kernel import CERTIFICATE, BlueprintStatus, BuildSpec, JobPhase, KernelStatus, Measurement
from esper.errors import Conflict, EsperError, InvalidBlueprint, KernelRejected, NotFound
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, form_of, request_for, verdict_on
from esper.testing.stocking import (
    LEASE_S,
    O3,
    Stock,
    built,
    claimed,
    compiled,
    finishing,
    outcome_of,
    refused,
    unmeasured,
)


class LibraryContract:
    """The laws of `esper.ports.Library` and `esper.ports.CompileQueue`, one test each."""

    async def test_a_kernel_is_found_and_read_once_its_report_is_stored(self, library: Stock) -> None:
        ir = adapter()
        response = await library.submit(request_for(ir))
        assert response.blueprint_id == ir.digest
        assert await library.find(ir.digest, BuildSpec()) is None
        kernel = await compiled(library, b"bytes of a kernel")
        assert kernel.status is KernelStatus.VALIDATED
        assert await library.find(ir.digest, BuildSpec()) == kernel
        assert await library.read(kernel.kernel_id) == b"bytes of a kernel"

    async def test_a_blueprint_that_breaks_a_rule_is_refused_with_its_path(self, library: Stock) -> None:
        request = request_for(adapter())
        broken = {**request.architecture_ir, "output": "nowhere"}
        error = await refused(library.submit(request.model_copy(update={"architecture_ir": broken})), InvalidBlueprint)
        assert isinstance(error, InvalidBlueprint)
        assert error.path == "$.output"
        assert await library.claim("w", lease_s=LEASE_S) is None

    async def test_a_graft_that_would_be_dead_is_refused(self, library: Stock) -> None:
        ir = adapter()
        document = ir.to_json()
        nodes = document["nodes"]
        assert isinstance(nodes, list)
        for node in nodes:
            if isinstance(node, dict) and node["op"] == "linear" and isinstance(node["attrs"], dict):
                node["attrs"]["init"] = "zero"
        request = request_for(ir).model_copy(update={"architecture_ir": document})
        assert "dead" in str(await refused(library.submit(request), InvalidBlueprint))

    async def test_equal_submissions_make_one_job(self, library: Stock) -> None:
        await asyncio.gather(*(library.submit(request_for(adapter())) for _ in range(10)))
        assert await library.claim("a", lease_s=LEASE_S) is not None
        assert await library.claim("b", lease_s=LEASE_S) is None

    async def test_another_build_of_a_blueprint_is_another_job(self, library: Stock) -> None:
        for seed in (0, 1):
            await library.submit(request_for(adapter(), build=BuildSpec(weight_seed=seed)))
        first, second = await claimed(library, "a"), await claimed(library, "a")
        assert {first.build.weight_seed, second.build.weight_seed} == {0, 1}

    async def test_the_most_urgent_job_is_claimed_first_and_then_the_oldest(
        self, library: Stock, clock: ManualClock
    ) -> None:
        for width, priority in ((1, 5), (2, 9), (3, 5)):
            await library.submit(request_for(adapter(width), priority=priority))
            clock.advance(1)
        order = [(await claimed(library, "w")).blueprint_id for _ in range(3)]
        assert order == [adapter(width).digest for width in (2, 1, 3)]

    async def test_a_job_is_not_passed_for_ever_by_more_urgent_ones(self, library: Stock, clock: ManualClock) -> None:
        await library.submit(request_for(adapter(1), priority=1))
        passed = 0
        for width in range(2, 60):
            clock.advance(10.0)
            await library.submit(request_for(adapter(width), priority=10))
            job = await library.claim("w", lease_s=3600.0)
            if job is not None and job.blueprint_id == adapter(1).digest:
                break
            passed += 1
        assert 9 <= passed <= 30, "nine steps of priority are worth minutes, not hours"

    async def test_a_build_that_waits_can_be_withdrawn_and_asked_for_again(self, library: Stock) -> None:
        ir = adapter()
        await refused(library.withdraw(ir.digest, BuildSpec()), NotFound)
        await library.submit(request_for(ir))
        await library.withdraw(ir.digest, BuildSpec())
        assert await library.claim("w", lease_s=LEASE_S) is None
        assert "withdrawn" in str(await refused(library.find(ir.digest, BuildSpec()), KernelRejected))
        await refused(library.withdraw(ir.digest, BuildSpec()), Conflict)
        await library.submit(request_for(ir))
        assert (await compiled(library, b"after all")).status is KernelStatus.VALIDATED

    async def test_a_build_that_is_withdrawn_at_work_is_not_its_workers_any_more(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        job = await claimed(library, "w")
        await library.withdraw(job.blueprint_id, job.build)
        await refused(library.renew(job.job_id, "w", lease_s=LEASE_S), Conflict)
        artifact = artifact_of(job.blueprint_id, b"too late")
        await refused(library.complete(job.job_id, "w", artifact, verdict_on(artifact)), Conflict)

    async def test_a_job_is_claimed_by_one_of_many_workers(self, library: Stock) -> None:
        for width in range(1, 6):
            await library.submit(request_for(adapter(width)))
        jobs = await asyncio.gather(*(library.claim(f"w{n}", lease_s=LEASE_S) for n in range(12)))
        ids = [job.job_id for job in jobs if job is not None]
        assert len(ids) == len(set(ids)) == 5

    async def test_a_lease_that_ran_out_returns_the_job(self, library: Stock, clock: ManualClock) -> None:
        await library.submit(request_for(adapter()))
        first = await claimed(library, "a")
        clock.advance(LEASE_S + 1)
        second = await claimed(library, "b")
        assert second.job_id == first.job_id
        assert second.attempt == first.attempt + 1
        await refused(library.renew(first.job_id, "a", lease_s=LEASE_S), Conflict)

    async def test_a_renewed_lease_keeps_the_job(self, library: Stock, clock: ManualClock) -> None:
        await library.submit(request_for(adapter()))
        job = await claimed(library, "a")
        for _ in range(3):
            clock.advance(LEASE_S * 0.9)
            await library.renew(job.job_id, "a", lease_s=LEASE_S)
        assert await library.claim("b", lease_s=LEASE_S) is None

    async def test_who_lost_the_lease_cannot_complete(self, library: Stock, clock: ManualClock) -> None:
        await library.submit(request_for(adapter()))
        job = await claimed(library, "a")
        clock.advance(LEASE_S + 1)
        await claimed(library, "b")
        artifact = artifact_of(job.blueprint_id, b"late")
        await refused(library.complete(job.job_id, "a", artifact, verdict_on(artifact)), Conflict)
        await refused(library.read(artifact.artifact_id), NotFound)

    async def test_bytes_with_another_digest_are_not_stored(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        job = await claimed(library, "a")
        honest = artifact_of(job.blueprint_id, b"honest")
        forged = honest.model_copy(update={"kernel_binary": b"forged"})
        await refused(library.complete(job.job_id, "a", forged, verdict_on(honest)), KernelRejected)
        await refused(library.read(honest.artifact_id), NotFound)

    async def test_a_kernel_whose_validation_failed_is_never_handed_out(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        kernel = await compiled(library, b"wrong", reasons=("off by 0.5",))
        assert kernel.status is KernelStatus.REJECTED
        assert "off by 0.5" in str(await refused(library.find(kernel.blueprint_id, BuildSpec()), KernelRejected))
        await refused(library.read(kernel.kernel_id), KernelRejected)

    async def test_a_job_that_failed_for_good_says_why(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        job = await claimed(library, "a")
        await library.fail(job.job_id, "a", "the op has no body", retry=False)
        assert "no body" in str(await refused(library.find(job.blueprint_id, BuildSpec()), KernelRejected))
        again = await library.submit(request_for(adapter()))
        assert "no body" in again.message
        assert await library.claim("a", lease_s=LEASE_S) is None

    async def test_a_job_that_killed_two_workers_is_quarantined(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        for n in (1, 2):
            job = await claimed(library, "a")
            became = await library.fail(job.job_id, "a", f"signal {n}", retry=True, killed=True)
            assert (became is BlueprintStatus.QUARANTINED) == (n == 2)
        assert await library.claim("a", lease_s=LEASE_S) is None
        error = await refused(library.find(job.blueprint_id, BuildSpec()), KernelRejected)
        assert "quarantined" in str(error)
        assert "signal 2" in str(error)

    async def test_another_build_of_a_quarantined_blueprint_is_not_tried(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        for _ in range(2):
            job = await claimed(library, "a")
            await library.fail(job.job_id, "a", "signal 11", retry=True, killed=True)
        await library.submit(request_for(adapter(), build=BuildSpec(weight_seed=1)))
        assert await library.claim("a", lease_s=LEASE_S) is None

    async def test_a_higher_level_follows_behind_every_build_as_a_job_of_its_own(self, library: Stock) -> None:
        await library.submit(request_for(adapter(1), build=O3))
        kernel = await compiled(library, b"proven")
        assert await library.find(kernel.blueprint_id, O3) == kernel
        await library.submit(request_for(adapter(2), priority=1))
        assert (await claimed(library, "w")).phase is JobPhase.BUILD
        job = await claimed(library, "w")
        assert (job.phase, job.kernel_id, job.build) == (JobPhase.FINISH, kernel.kernel_id, O3)
        await library.finish(job.job_id, "w", [form_of(b"program"), form_of(b"other", backend="eager", level="O2")])
        assert [kept.form.backend for kept in await library.forms(kernel.kernel_id)] == ["eager", "onnx"]
        kept = (await library.forms(kernel.kernel_id))[1]
        assert (kept.form, kept.seal) == (form_of(b"program").form, form_of(b"program").seal)
        assert await library.read_form(kernel.kernel_id, kept.form.digest) == b"program"
        await refused(library.read_form(kernel.kernel_id, kernel.kernel_id), NotFound)
        assert await library.claim("w", lease_s=LEASE_S) is None

    async def test_a_later_form_of_the_same_make_takes_the_place_of_the_first(self, library: Stock) -> None:
        kernel = await finishing(library)
        job = await claimed(library, "w")
        await library.finish(job.job_id, "w", [form_of(b"old"), form_of(b"new")])
        found = await library.forms(kernel.kernel_id)
        assert [kept.form.digest for kept in found] == [form_of(b"new").form.digest]

    async def test_forms_come_with_a_kernel_too(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        job = await claimed(library, "w")
        made = artifact_of(job.blueprint_id, b"k").model_copy(
            update={"inference": (form_of(b"{}", level="O1", backend=CERTIFICATE, seal=b""),)}
        )
        kernel = await library.complete(job.job_id, "w", made, verdict_on(made))
        assert [kept.form.level for kept in await library.forms(kernel.kernel_id)] == ["O1"]

    async def test_what_may_carry_code_is_kept_with_a_seal_or_not_at_all(self, library: Stock) -> None:
        kernel = await finishing(library)
        job = await claimed(library, "w")
        for seal in (b"", b"signed, honestly"):
            unsealed = [form_of(b"program"), form_of(b"other", backend="eager", seal=seal)]
            error = await refused(library.finish(job.job_id, "w", unsealed), KernelRejected)
            assert "ESP-7251" in str(error)
        wrong = form_of(b"x").model_copy(update={"form": form_of(b"y" * 5).form})
        await refused(library.finish(job.job_id, "w", [wrong]), EsperError)
        assert await library.forms(kernel.kernel_id) == []

    async def test_a_kernel_that_cannot_be_finished_stays_proven(self, library: Stock) -> None:
        kernel = await finishing(library)
        for n in (1, 2):
            job = await claimed(library, "w")
            assert job.phase is JobPhase.FINISH
            became = await library.fail(job.job_id, "w", f"signal {n}", retry=True, killed=True)
            assert became is BlueprintStatus.VALIDATED
        assert await library.claim("w", lease_s=LEASE_S) is None
        assert await library.find(kernel.blueprint_id, O3) == kernel
        await library.submit(request_for(adapter(), build=BuildSpec(weight_seed=7)))
        assert await library.claim("w", lease_s=LEASE_S) is not None

    async def test_a_kernel_is_handed_out_before_it_is_measured_and_is_measured_once(self, library: Stock) -> None:
        kernel = await unmeasured(library)
        assert kernel.status is KernelStatus.VALIDATED
        assert "latency_p50_ms" not in kernel.validation_metrics
        assert await library.claim("w", lease_s=LEASE_S, finishing=False) is None
        job = await claimed(library, "w")
        assert (job.phase, job.kernel_id) == (JobPhase.FINISH, kernel.kernel_id)
        quick = Measurement(passed=True, metrics={"latency_p50_ms": 0.25}, hardware="a bench")
        await library.finish(job.job_id, "w", [], quick)
        found = await library.find(kernel.blueprint_id, BuildSpec())
        assert found is not None
        assert found.validation_metrics["latency_p50_ms"] == 0.25
        assert await library.claim("w", lease_s=LEASE_S) is None

    async def test_builds_alone_are_claimed_where_nothing_else_will_do(self, library: Stock) -> None:
        await unmeasured(library)
        await library.submit(request_for(adapter(2), priority=1))
        job = await library.claim("w", lease_s=LEASE_S, finishing=False)
        assert job is not None
        assert job.phase is JobPhase.BUILD
        assert await library.claim("w", lease_s=LEASE_S, finishing=False) is None

    async def test_the_most_used_kernel_is_reviewed_once_on_each_hardware_and_never_claimed(
        self, library: Stock
    ) -> None:
        seldom, often = [await built(library, width) for width in (2, 3)]
        for number, kernel in enumerate((seldom, often, often)):
            await library.report(outcome_of(f"decision-{number}", kernel.kernel_id))
        job = await library.review("w", "new", lease_s=LEASE_S)
        assert job is not None
        assert (job.phase, job.kernel_id, job.build) == (JobPhase.REVIEW, often.kernel_id, BuildSpec())
        await library.release(job.job_id, "w")
        assert await library.claim("w", lease_s=LEASE_S) is None
        again = await library.review("other", "new", lease_s=LEASE_S)
        assert again is not None
        assert again.job_id == job.job_id
        figures = Measurement(passed=True, metrics={"latency_p50_ms": 0.125}, hardware="new")
        report = verdict_on(artifact_of(often.blueprint_id, b"kernel 3")).model_copy(update={"performance": figures})
        await library.finish(job.job_id, "other", [], figures, report=report)
        found = await library.find(often.blueprint_id, BuildSpec())
        assert found is not None
        assert found.validation_metrics["latency_p50_ms"] == 0.125
        second = await library.review("w", "new", lease_s=LEASE_S)
        assert second is not None
        assert second.kernel_id == seldom.kernel_id
        await library.fail(second.job_id, "w", "cannot be built here", retry=False)
        assert await library.review("w", "new", lease_s=LEASE_S) is None, "each was looked at once"
        assert await library.read(seldom.kernel_id) == b"kernel 2", "it stays proven"
        assert await library.review("w", "newer still", lease_s=LEASE_S) is not None

    async def test_a_kernel_that_does_not_pass_a_review_is_withdrawn(self, library: Stock) -> None:
        kernel = await built(library, 2)
        await library.report(outcome_of("decision-1", kernel.kernel_id))
        job = await library.review("w", "new", lease_s=LEASE_S)
        assert job is not None
        wrong = verdict_on(artifact_of(kernel.blueprint_id, b"kernel 2"), reasons=("differs by 0.5",))
        await library.finish(job.job_id, "w", [], wrong.performance, report=wrong)
        await refused(library.read(kernel.kernel_id), KernelRejected)

    async def test_kernels_that_nobody_used_are_not_reviewed(self, library: Stock) -> None:
        await built(library, 2)
        assert await library.review("w", "new", lease_s=LEASE_S) is None

    async def test_a_later_measurement_takes_the_place_of_the_first_and_may_withdraw(self, library: Stock) -> None:
        kernel = await finishing(library)
        job = await claimed(library, "w")
        slow = Measurement(passed=False, metrics={"latency_p50_ms": 9e3}, reasons=("too slow",))
        await library.finish(job.job_id, "w", [], slow)
        await refused(library.read(kernel.kernel_id), KernelRejected)

    async def test_a_build_cannot_be_finished_and_who_lost_the_lease_finishes_nothing(
        self, library: Stock, clock: ManualClock
    ) -> None:
        await library.submit(request_for(adapter(2)))
        job = await claimed(library, "w")
        await refused(library.finish(job.job_id, "w", []), Conflict)
        await library.fail(job.job_id, "w", "never mind", retry=False)
        kernel = await finishing(library)
        job = await claimed(library, "a")
        clock.advance(LEASE_S + 1)
        await claimed(library, "b")
        await refused(library.finish(job.job_id, "a", [form_of(b"late")]), Conflict)
        assert await library.forms(kernel.kernel_id) == []

    async def test_a_job_that_never_ends_well_is_given_up_and_can_be_asked_for_again(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        tries = 0
        while (job := await library.claim("a", lease_s=LEASE_S)) is not None:
            tries += 1
            await library.fail(job.job_id, "a", "no memory left", retry=True)
            assert tries < 100
        assert tries > 1
        assert "no memory left" in str(await refused(library.find(adapter().digest, BuildSpec()), KernelRejected))
        await library.submit(request_for(adapter()))
        assert await library.claim("a", lease_s=LEASE_S) is not None

    async def test_a_released_job_counts_as_untried(self, library: Stock) -> None:
        await library.submit(request_for(adapter()))
        for _ in range(20):
            job = await claimed(library, "a")
            assert job.attempt == 1
            await library.release(job.job_id, "a")

    async def test_an_outcome_is_recorded_once(self, library: Stock) -> None:
        outcome = outcome_of("decision-1", "sha256:" + "0" * 64)
        await asyncio.gather(*(library.report(outcome) for _ in range(4)))

    async def test_an_unknown_kernel_is_not_found(self, library: Stock) -> None:
        await refused(library.read("sha256:" + "0" * 64), NotFound)
        assert await library.find("sha256:" + "0" * 64, BuildSpec()) is None
