"""From a submitted blueprint to a kernel that can be read, through the real queue, the real bus and real children."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from esper.contracts.events import CompilationEvent
from esper.contracts.kernel import BuildSpec, CompileJob, KernelStatus
from esper.contracts.topics import COMPILATIONS
from esper.errors import ConfigError, ForgeUnavailable, KernelRejected
from esper.ir import BlueprintIR, Graph, Layout, digest_of
from esper.ports import Delivery
from esper.services.oona.memory_bus import MemoryBus
from esper.services.tezzeret.assignment import Ending
from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.outbox import OutboxRelay
from esper.signing.keys import KeyRing, SigningKey
from esper.signing.sealed import unseal
from esper.testing.faults import Fault, faulty
from esper.testing.forging import adapter, request_for
from esper.testing.store_server import served

FAULTS = ("esper.testing.faults",)


class Stand:
    """A library, a bus and what was announced on it."""

    def __init__(self, library: KernelManager, bus: MemoryBus) -> None:
        self.library, self.bus = library, bus
        self.heard: list[CompilationEvent] = []
        self._news = asyncio.Condition()

    @asynccontextmanager
    async def working(self, worker: TezzeretWorker) -> AsyncIterator[asyncio.Task[None]]:
        running = asyncio.create_task(worker.run())
        yield running
        await worker.close()
        await running

    async def note(self, delivery: Delivery) -> None:
        assert isinstance(delivery.body, CompilationEvent)
        async with self._news:
            self.heard.append(delivery.body)
            self._news.notify_all()

    async def event(self, blueprint_id: str, status: str, *, limit_s: float = 60.0, count: int = 1) -> CompilationEvent:
        """Wait for an announcement."""

        def matching() -> list[CompilationEvent]:
            return [event for event in self.heard if (event.blueprint_id, event.status) == (blueprint_id, status)]

        async with asyncio.timeout(limit_s), self._news:
            await self._news.wait_for(lambda: len(matching()) >= count)
            return matching()[count - 1]

    def statuses(self, blueprint_id: str) -> list[str]:
        """Return what was told in order, the queue's word first: it goes through the outbox, and the worker's does not."""
        told = [event.status for event in self.heard if event.blueprint_id == blueprint_id]
        return sorted(told, key=lambda status: status != "queued")


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with (
        await KernelManager.open(tmp_path / "library") as library,
        MemoryBus() as bus,
        OutboxRelay(library.outbox, bus),
    ):
        made = Stand(library, bus)
        listening = asyncio.create_task(bus.subscribe(COMPILATIONS.stream, "test", made.note))
        yield made
        await bus.close()
        await listening


async def test_a_build_that_is_withdrawn_at_work_is_stopped(stand: Stand) -> None:
    hanging = faulty(Fault.HANG)
    worker = worker_of(stand, extensions=FAULTS, lease_s=3.0, poll_s=0.05)
    async with stand.working(worker):
        await stand.library.submit(request_for(hanging))
        await stand.event(hanging.digest, "started")
        await stand.library.withdraw(hanging.digest, BuildSpec())
        await stand.library.submit(request_for(adapter()))
        await stand.event(adapter().digest, "compiled")
    assert stand.statuses(hanging.digest) == ["queued", "started", "withdrawn"]
    assert worker.endings == {Ending.LOST: 1, Ending.COMPILED: 1}


@pytest.mark.slow
async def test_when_a_kernel_is_expected_is_right_to_an_order_of_magnitude(stand: Stand) -> None:
    worker = worker_of(stand, num_workers=2)
    widths = range(2, 26)
    async with stand.working(worker):
        before = range(30, 56)  # more than are looked at, so that none of those waited for its child to start
        for width in before:
            await stand.library.submit(request_for(adapter(width)))
        for width in before:
            await stand.event(adapter(width).digest, "compiled")
        began, asked, done = asyncio.get_running_loop().time(), dict[int, float](), dict[int, float]()
        expected = dict[int, float]()
        for width in widths:
            asked[width] = asyncio.get_running_loop().time() - began
            eta_s = (await stand.library.submit(request_for(adapter(width)))).estimated_compilation_time_s
            assert eta_s is not None
            expected[width] = eta_s
        for width in widths:
            await stand.event(adapter(width).digest, "compiled", limit_s=120)
            done[width] = asyncio.get_running_loop().time() - began
    ratios = [expected[width] / (done[width] - asked[width]) for width in widths]
    assert 0.1 < statistics.median(ratios) < 10.0, ratios


def worker_of(stand: Stand, **config: object) -> TezzeretWorker:
    return TezzeretWorker(WorkerConfig(**config), queue=stand.library, bus=stand.bus)  # type: ignore[arg-type]


async def test_a_submitted_blueprint_becomes_a_kernel_that_is_announced_after_it_is_stored(stand: Stand) -> None:
    worker = worker_of(stand, poll_s=60.0)
    async with stand.working(worker):
        await asyncio.sleep(0.05)  # it waits for news by now, as it will not look again for a minute
        await stand.library.submit(request_for(adapter()))
        event = await stand.event(adapter().digest, "compiled")
        kernel = await stand.library.find(adapter().digest, BuildSpec())
        assert kernel is not None
        assert kernel.kernel_id == event.kernel_id
        assert kernel.status is KernelStatus.VALIDATED
        assert digest_of(await stand.library.read(kernel.kernel_id)) == kernel.kernel_id
        assert {"loss_ratio_after_fit", "flops", "params"} <= kernel.validation_metrics.keys()
        assert kernel.estimated_flops == 128
        assert event.elapsed_ms > 0
        await stand.event(adapter().digest, "finished")
        measured = await stand.library.find(adapter().digest, BuildSpec())
        assert measured is not None
        assert {"latency_p50_ms", "throughput_per_s", "training_step_p50_ms"} <= measured.validation_metrics.keys()
        report = await stand.library.get_report(kernel.kernel_id)
        assert report.performance is not None
        assert report.performance.hardware.endswith(f"torch {torch.__version__.partition('+')[0]}")
    assert stand.statuses(adapter().digest) == ["queued", "started", "compiled", "finished"]
    assert worker.endings == {Ending.COMPILED: 1, Ending.FINISHED: 1}
    assert worker.pool.idle_pids == []


@pytest.mark.parametrize("signs", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_a_proven_kernel_is_handed_out_and_what_its_level_adds_follows_sealed(
    stand: Stand, tmp_path: Path, signs: bool
) -> None:
    key, build, ir = SigningKey.generate(), BuildSpec(level="O2"), adapter()
    key.write(tmp_path / "forge.key")
    worker = worker_of(stand, optimization_level="O3", signing_key=tmp_path / "forge.key" if signs else None)
    async with stand.working(worker):
        await stand.library.submit(request_for(ir, build=build))
        event = await stand.event(ir.digest, "finished")
        kernel = await stand.library.find(ir.digest, build)
        assert kernel is not None
        assert kernel.kernel_id == event.kernel_id
        ended = [status for status in stand.statuses(ir.digest) if status not in ("queued", "started")]
        assert ended == ["compiled", "finished"]
        forms = await stand.library.forms(kernel.kernel_id)
        assert [kept.form.level for kept in forms] == (["O1", "O2"] if signs else ["O1"])
        assert kernel.optimization_level == forms[-1].form.level
        ring = KeyRing().trust(key.public, name="forge")
        for kept in forms if signs else ():
            data = await stand.library.read_form(kernel.kernel_id, kept.form.digest)
            unseal(data, kept.seal, ring, kind=kept.form.backend, now=datetime.now(UTC))
        assert "no signing key" in event.reason or signs
    assert worker.endings == {Ending.COMPILED: 1, Ending.FINISHED: 1}


def too_large() -> BlueprintIR:
    graph = Graph(Layout.FEATURES, 4096)
    hidden = graph.gelu(graph.linear(graph.input, out=4096))
    return graph.finish(graph.linear(hidden, out=4096, init="zero"), "bomb")


async def test_what_is_too_large_is_refused_before_any_child_starts(stand: Stand) -> None:
    worker = worker_of(stand)
    bomb = too_large()
    async with stand.working(worker):
        await stand.library.submit(request_for(bomb))
        event = await stand.event(bomb.digest, "rejected")
    assert "33562624 parameters; the cap is" in event.reason
    assert worker.pool.started == 0
    with pytest.raises(KernelRejected, match="too many parameters"):
        await stand.library.find(bomb.digest, BuildSpec())


async def test_a_wrong_result_is_refused_and_its_kernel_never_handed_out(stand: Stand) -> None:
    wrong = faulty(Fault.WRONG)
    async with stand.working(worker_of(stand, extensions=FAULTS)):
        await stand.library.submit(request_for(wrong))
        event = await stand.event(wrong.digest, "rejected")
        assert "differs from the reference" in event.reason
        assert event.kernel_id is not None
        with pytest.raises(KernelRejected):
            await stand.library.read(event.kernel_id)
        await stand.library.submit(request_for(adapter()))
        await stand.event(adapter().digest, "compiled")


@pytest.mark.chaos
@pytest.mark.parametrize("fault", [Fault.HANG, Fault.SEGFAULT, Fault.MEMORY])
async def test_a_deadly_blueprint_is_quarantined_after_two_deaths_and_the_next_one_compiles(
    stand: Stand, fault: Fault
) -> None:
    worker = worker_of(stand, extensions=FAULTS, deadline_s=2.0, memory_limit_mb=256)
    deadly = faulty(fault)
    async with stand.working(worker):
        await stand.library.submit(request_for(deadly, priority=9))
        await stand.library.submit(request_for(adapter()))
        event = await stand.event(deadly.digest, "quarantined")
        await stand.event(adapter().digest, "compiled")
    assert stand.statuses(deadly.digest) == ["queued", "started", "failed", "started", "quarantined"]
    said = {Fault.HANG: "no answer within 2 s", Fault.SEGFAULT: "SIGSEGV", Fault.MEMORY: "ran out of memory"}
    assert said[fault] in event.reason
    with pytest.raises(KernelRejected, match="quarantined"):
        await stand.library.find(deadly.digest, BuildSpec())


@pytest.mark.chaos
async def test_a_lease_is_renewed_while_a_job_runs(stand: Stand) -> None:
    hanging = faulty(Fault.HANG)
    async with stand.working(worker_of(stand, extensions=FAULTS, deadline_s=3.0, lease_s=0.6)):
        await stand.library.submit(request_for(hanging))
        await stand.event(hanging.digest, "started")
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            assert await stand.library.claim("thief", lease_s=30) is None
            await asyncio.sleep(0.1)


@pytest.mark.chaos
async def test_closing_returns_a_running_job_untried_and_soon(stand: Stand) -> None:
    hanging = faulty(Fault.HANG)
    worker = worker_of(stand, extensions=FAULTS)
    running = asyncio.create_task(worker.run())
    await stand.library.submit(request_for(hanging))
    await stand.event(hanging.digest, "started")
    await asyncio.sleep(2.0)
    began = time.monotonic()
    await worker.close()
    await running
    assert time.monotonic() - began < 3
    assert worker.endings == {Ending.RELEASED: 1}
    job = await stand.library.claim("another", lease_s=30)
    assert job is not None
    assert job.attempt == 1


@pytest.mark.chaos
async def test_cancelling_the_worker_returns_its_job_too(stand: Stand) -> None:
    hanging = faulty(Fault.HANG)
    running = asyncio.create_task(worker_of(stand, extensions=FAULTS).run())
    await stand.library.submit(request_for(hanging))
    await stand.event(hanging.digest, "started")
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    job = await stand.library.claim("another", lease_s=30)
    assert job is not None
    assert job.attempt == 1


async def test_closing_a_worker_that_never_ran_or_has_nothing_to_do_is_quick(stand: Stand) -> None:
    await worker_of(stand).close()
    worker = worker_of(stand, poll_s=60.0)
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await worker.close()
    await running
    assert time.monotonic() - began < 1


async def test_a_worker_without_a_bus_finds_jobs_by_looking(stand: Stand) -> None:
    worker = TezzeretWorker(WorkerConfig(poll_s=0.02), queue=stand.library)
    async with stand.working(worker):
        await asyncio.sleep(0.05)
        await stand.library.submit(request_for(too_large()))
        async with asyncio.timeout(10):
            while not worker.endings:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert worker.endings == {Ending.REJECTED: 1}


class _Stuck:
    """A queue whose jobs cannot be given back."""

    async def claim(self, worker: str, *, lease_s: float, finishing: bool = True) -> CompileJob | None:
        await asyncio.Event().wait()
        return None


async def test_a_queue_that_does_not_let_go_is_told_after_the_limit() -> None:
    worker = TezzeretWorker(WorkerConfig(close_limit_s=0.1), queue=_Stuck())  # type: ignore[arg-type]
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0.01)
    with pytest.raises(ForgeUnavailable, match=r"within 0\.1 s"):
        await worker.close()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def test_a_worker_without_a_queue_is_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match="set urza_url"):
        TezzeretWorker(WorkerConfig(num_workers=4, optimization_level="O2"))


@pytest.mark.slow
async def test_a_worker_asks_the_store_at_its_address(stand: Stand) -> None:
    async with served(stand.library) as address:
        worker = TezzeretWorker(WorkerConfig(urza_url=address), bus=stand.bus)
        async with stand.working(worker):
            await stand.library.submit(request_for(adapter()))
            await stand.event(adapter().digest, "compiled", limit_s=60)


async def test_draining_lets_the_jobs_in_hand_end_and_takes_no_other(stand: Stand) -> None:
    for width in (1, 2, 3):
        await stand.library.submit(request_for(adapter(width)))
    worker = worker_of(stand)
    running = asyncio.create_task(worker.run())
    await stand.event(adapter(1).digest, "started")
    await worker.drain(limit_s=60)
    await running
    assert worker.endings.keys() == {Ending.COMPILED}
    assert await stand.library.find(adapter(1).digest, BuildSpec()) is not None
    assert await stand.library.find(adapter(3).digest, BuildSpec()) is None


async def test_what_does_not_end_within_the_limit_of_draining_goes_back(stand: Stand) -> None:
    await stand.library.submit(request_for(adapter()))
    worker = worker_of(stand)
    running = asyncio.create_task(worker.run())
    await stand.event(adapter().digest, "started")
    await worker.drain(limit_s=0.0)
    await running
    assert worker.endings.keys() == {Ending.RELEASED}
    assert await stand.library.claim("another", lease_s=30.0) is not None


@pytest.mark.parametrize("name", ["no_such_module_anywhere", "no.such.module", "esper.testing.no_such", ""])
def test_an_extension_that_is_not_installed_is_refused_by_name(stand: Stand, name: str) -> None:
    with pytest.raises(ConfigError, match=repr(name)):
        worker_of(stand, extensions=(name,))


def test_machine_code_is_not_made_by_children_on_other_machines(stand: Stand) -> None:
    with pytest.raises(ConfigError, match=r"ESP-2573.*on other machines"):
        worker_of(stand, executor="ray", backend="aotinductor")


def test_an_executor_that_is_not_installed_is_named(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.services.tezzeret.config.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"ray is not installed.*pip install"):
        worker_of(stand, executor="ray")
