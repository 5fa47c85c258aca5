"""A forge with nothing to do proves the most used kernels again, and leaves off as soon as a build comes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import esper.testing.faults  # noqa: F401  registers the operations that go wrong
from esper.contracts.adaptation import Outcome, Verdict
from esper.contracts.kernel import BuildSpec, Measurement
from esper.ir import BlueprintIR
from esper.runtime.supervision import ChildCommand, SupervisedChild
from esper.services.tezzeret.assignment import Ending
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.hardware import hardware
from esper.services.tezzeret.pool import PoolConfig
from esper.services.tezzeret.quiet import Quiet
from esper.services.tezzeret.reviewing import Reviewer
from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.faults import Fault, faulty
from esper.testing.forging import adapter, request_for, verdict_on


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[KernelManager]:
    async with await KernelManager.open(tmp_path / "library") as opened:
        yield opened


async def used(library: KernelManager, ir: BlueprintIR, *, hardware: str = "another machine") -> str:
    """Have a kernel that was proven elsewhere and was grafted once."""
    await library.submit(request_for(ir))
    job = await library.claim("elsewhere", lease_s=30)
    assert job is not None
    artifact = KernelCompiler().compile(ir)
    figures = Measurement(passed=True, metrics={"latency_p50_ms": 1e6}, hardware=hardware)
    report = verdict_on(artifact).model_copy(update={"performance": figures})
    kernel = await library.complete(job.job_id, "elsewhere", artifact, report)
    outcome = Outcome(
        decision_id=f"decision on {ir.name}", run_id="run", slot="fc", seed_idx=0, blueprint=ir.name,
        kernel_id=kernel.kernel_id, verdict=Verdict.KEPT, gain=0.1, gain_error=None, params=10, steps=100,
    )  # fmt: skip
    await library.report(outcome)
    return kernel.kernel_id


async def until_ended(worker: TezzeretWorker, ending: Ending) -> None:
    assert worker.reviewer is not None
    async with asyncio.timeout(60):
        while not worker.reviewer.endings[ending]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_used_kernel_is_proven_again_with_the_toolchain_of_today(library: KernelManager) -> None:
    kernel_id = await used(library, adapter())
    worker = TezzeretWorker(WorkerConfig(review_after_s=0.0), queue=library)
    running = asyncio.create_task(worker.run())
    await until_ended(worker, Ending.FINISHED)
    await worker.close()
    await running
    report = await library.get_report(kernel_id)
    assert report.passed
    assert "error_own_dtype" in report.correctness.metrics, "the forge's own gates found this"
    assert report.performance is not None
    assert report.performance.hardware == hardware()
    assert report.performance.metrics["latency_p50_ms"] < 1e6
    assert worker.endings == {}
    assert worker.pool.started == 0


@pytest.mark.slow
async def test_a_review_is_done_on_this_machine_wherever_builds_are(library: KernelManager) -> None:
    def elsewhere(_: ChildCommand) -> SupervisedChild:
        raise AssertionError("that is no hardware of this machine")

    await used(library, adapter())
    worker = TezzeretWorker(WorkerConfig(review_after_s=0.0), queue=library)
    worker.reviewer = Reviewer(PoolConfig(place=elsewhere), Quiet(0.0), after_s=0.0, every_s=60.0)
    running = asyncio.create_task(worker.run())
    await until_ended(worker, Ending.FINISHED)
    await worker.close()
    await running


async def test_a_kernel_that_was_let_pass_wrongly_is_withdrawn(library: KernelManager) -> None:
    kernel_id = await used(library, faulty(Fault.WRONG))
    worker = TezzeretWorker(WorkerConfig(review_after_s=0.0, extensions=("esper.testing.faults",)), queue=library)
    running = asyncio.create_task(worker.run())
    await until_ended(worker, Ending.FINISHED)
    await worker.close()
    await running
    assert (await library.get_kernel(kernel_id)).status == "rejected"


@pytest.mark.chaos
async def test_a_review_that_never_ends_gives_way_to_the_first_build(library: KernelManager) -> None:
    await used(library, faulty(Fault.HANG))
    config = WorkerConfig(review_after_s=0.0, poll_s=0.05, extensions=("esper.testing.faults",))
    worker = TezzeretWorker(config, queue=library)
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(3.0)  # its child is started, and at work for ever
    await library.submit(request_for(adapter()))
    await until_ended(worker, Ending.RELEASED)
    async with asyncio.timeout(30):
        while await library.find(adapter().digest, BuildSpec()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await worker.close()
    await running
    job = await library.review("another", "a third machine", lease_s=30)
    assert job is not None
    assert job.attempt == 1, "being disturbed is no try"
