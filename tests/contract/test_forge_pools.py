"""Pools on this machine and in a Ray cluster keep the same laws."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from psutil import NoSuchProcess, Process, wait_procs

from esper.contracts.ids import new_id
from esper.contracts.kernel import BuildSpec, CompileJob
from esper.errors import ChildDied, CompilationError, DeadlineExceeded, ForgeUnavailable
from esper.ir import BlueprintIR, digest_of
from esper.runtime.supervision import ChildCommand, SupervisedChild
from esper.services.tezzeret.assignment import Ending
from esper.services.tezzeret.orders import CHILD_MODULE, Order, order_of
from esper.services.tezzeret.pool import Child, ForgePool, PoolConfig
from esper.services.tezzeret.screening import ForgeLimits
from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.faults import Fault, faulty
from esper.testing.forging import adapter, request_for

Place = Callable[[ChildCommand], Child]
Pools = Callable[..., ForgePool]
FAULTS = ("esper.testing.faults",)


def order(ir: BlueprintIR) -> Order:
    """Return a build."""
    job = CompileJob(
        job_id=new_id("job"), blueprint_id=ir.digest, name=ir.name, architecture_ir=ir.to_json(), build=BuildSpec(),
        priority=5, attempt=1,
    )  # fmt: skip
    return order_of(job, "O0")


@pytest.fixture
async def pools(place: Place) -> AsyncIterator[Pools]:
    """Give pools that are closed in the end."""
    made: list[ForgePool] = []

    def make(*, memory_limit_mb: int = 2048, deadline_s: float = 60.0, **config: Any) -> ForgePool:
        limits = ForgeLimits(memory_limit_mb=memory_limit_mb, deadline_s=deadline_s)
        made.append(ForgePool(PoolConfig(limits=limits, place=place, **config)))
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


class PoolLaws:
    """One test for each law. ``pools`` takes ``memory_limit_mb``, ``deadline_s``, and fields of a `PoolConfig`."""

    async def test_equal_builds_give_equal_bytes_and_the_child_is_kept(self, pools: Pools) -> None:
        pool = pools()
        first, report = await pool.forge(order(adapter()))
        again, _ = await pool.forge(order(adapter()))
        assert report.passed, report.reasons
        assert digest_of(first.kernel_binary) == first.artifact_id == again.artifact_id
        assert pool.started == 1

    async def test_a_refusal_costs_no_child(self, pools: Pools) -> None:
        pool = pools(extensions=FAULTS)
        with pytest.raises(CompilationError):
            await pool.forge(order(adapter()).__class__(blueprint_id="sha256:0", architecture_ir=b"{}", build=b"{}"))
        assert (await pool.forge(order(adapter())))[1].passed
        assert pool.started == 1

    async def test_what_hangs_is_killed_at_the_deadline_and_the_next_build_gets_a_new_child(self, pools: Pools) -> None:
        pool = pools(extensions=FAULTS, deadline_s=3.0)
        with pytest.raises(DeadlineExceeded, match="within 3 s"):
            await pool.forge(order(faulty(Fault.HANG)))
        assert (await pool.forge(order(adapter())))[1].passed
        assert pool.started == 2

    async def test_what_crashes_is_told_with_its_signal(self, pools: Pools) -> None:
        pool = pools(extensions=FAULTS)
        with pytest.raises(ChildDied, match="SIGSEGV"):
            await pool.forge(order(faulty(Fault.SEGFAULT)))
        assert (await pool.forge(order(adapter())))[1].passed

    async def test_memory_is_limited(self, pools: Pools) -> None:
        pool = pools(extensions=FAULTS, memory_limit_mb=256)
        with pytest.raises(ChildDied, match="256 MiB are allowed"):
            await pool.forge(order(faulty(Fault.MEMORY)))
        assert (await pool.forge(order(adapter())))[1].passed

    async def test_a_build_that_is_cancelled_ends_its_child(self, pools: Pools) -> None:
        pool = pools(extensions=FAULTS)
        await pool.forge(order(adapter()))
        hanging = asyncio.create_task(pool.forge(order(faulty(Fault.HANG))))
        await asyncio.sleep(0.5)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert (await pool.forge(order(adapter())))[1].passed
        assert pool.started == 2

    async def test_children_work_side_by_side_and_are_replaced_after_their_jobs(self, pools: Pools) -> None:
        pool = pools(num_children=2, jobs_per_child=1)
        built = await asyncio.gather(*(pool.forge(order(adapter(width))) for width in (1, 2, 3)))
        assert all(report.passed for _, report in built)
        assert pool.started == 3

    async def test_each_build_may_have_a_process_of_its_own(self, pools: Pools) -> None:
        pool = pools(extensions=FAULTS, fork_per_job=True)
        with pytest.raises(ChildDied, match="SIGSEGV"):
            await pool.forge(order(faulty(Fault.SEGFAULT)))
        assert (await pool.forge(order(adapter())))[1].passed
        assert pool.started == 1, "the child that forks goes on"

    async def test_an_extension_that_cannot_be_imported_is_no_death_of_a_blueprint(self, pools: Pools) -> None:
        with pytest.raises(ForgeUnavailable, match="cannot be imported"):
            await pools(extensions=("no_such_module",)).forge(order(adapter()))


@pytest.mark.chaos
class TestProcesses(PoolLaws):
    """Children of this process."""

    @pytest.fixture
    def place(self) -> Place:
        return SupervisedChild


def alone(folder: str) -> dict[str, str]:
    """Return variables with which a Ray keeps to itself: its files, its token, and not a word to its makers."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    # Its processes would be the last that a busy machine gives time to.
    return {**token, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Place]:
    """Start a Ray of this machine alone, and see that nothing is left of it."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="ray-") as folder:
        for name, value in alone(folder).items():
            patch.setenv(name, value)
        ray = pytest.importorskip("ray")  # it reads them at once
        from esper.services.tezzeret.ray_child import placed_in

        before = Process().children(recursive=True)
        yield placed_in(None, num_children=2)
        started = [process for process in Process().children(recursive=True) if process not in before]
        ray.shutdown()
        _, left = wait_procs(started, timeout=60)
        assert started
        assert not left


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestRay(PoolLaws):
    """Children that actors of Ray keep."""

    @pytest.fixture
    def place(self, cluster: Place) -> Place:
        return cluster

    async def test_a_machine_that_is_gone_is_an_outage_and_no_death_of_a_blueprint(self, pools: Pools) -> None:
        import ray

        pool = pools()
        await pool.forge(order(adapter()))
        (seat,) = pool._idle
        ray.kill(seat.child._actor, no_restart=True)  # type: ignore[attr-defined]
        with pytest.raises(ForgeUnavailable, match="its machine is"):
            await pool.forge(order(adapter()))
        assert (await pool.forge(order(adapter())))[1].passed

    async def test_a_worker_builds_there(self, cluster: Place, tmp_path: Path) -> None:
        async with await KernelManager.open(tmp_path / "library") as library:
            worker = TezzeretWorker(WorkerConfig(executor="ray"), queue=library)
            running = asyncio.create_task(worker.run())
            await library.submit(request_for(adapter()))
            async with asyncio.timeout(120):
                while not worker.endings[Ending.COMPILED]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert worker.pool.idle_pids == [], "none of its children is a process of this one"
            await worker.close()
            await running


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_what_builds_ends_with_a_forge_that_is_killed_and_its_cluster_reports_to_nobody() -> None:
    with TemporaryDirectory(prefix="ray-") as folder:
        # What would be reported nevertheless stays on this machine.
        environment = {**os.environ, **alone(folder), "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9"}
        del environment["RAY_USAGE_STATS_ENABLED"]
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        with Popen([sys.executable, "-c", FORGE], env=environment, stdin=PIPE, stdout=PIPE, text=True) as forge:
            assert forge.stdout is not None
            assert forge.stdout.readline() == "built\n"
            started = Process(forge.pid).children(recursive=True)
            (raylet,) = (process for process in started if process.name() == "raylet")
            assert raylet.environ()["RAY_USAGE_STATS_ENABLED"] == "0"
            builders = [process for process in started if is_builder(process)]
            assert len(builders) == 2, "an actor, and the child that it keeps"
            forge.kill()
        assert not wait_procs(builders, timeout=30)[1]
        for process in started:  # agents of Ray end only when they have missed the others for a minute
            with contextlib.suppress(NoSuchProcess):
                process.kill()


FORGE = """
import asyncio
import sys
from esper.services.tezzeret.pool import ForgePool, PoolConfig
from esper.services.tezzeret.ray_child import placed_in
from tests.contract.test_forge_pools import adapter, order

async def main():
    pool = ForgePool(PoolConfig(place=placed_in(None, num_children=1)))
    await pool.forge(order(adapter()))
    print("built", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def is_builder(process: Process) -> bool:
    """Say whether a process builds, or keeps one that does."""
    said = " ".join(process.cmdline())
    return "_Keeper" in said or CHILD_MODULE in said
