"""Pools on this machine and in a Ray cluster keep the same laws."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from esper.contracts.ids import new_id
from esper.contracts.kernel import BuildSpec, CompileJob
from esper.errors import ChildDied, CompilationError, DeadlineExceeded, ForgeUnavailable
from esper.ir import BlueprintIR, digest_of
from esper.runtime.supervision import ChildCommand, SupervisedChild
from esper.services.tezzeret.orders import Order, order_of
from esper.services.tezzeret.pool import Child, ForgePool, PoolConfig
from esper.services.tezzeret.screening import ForgeLimits
from esper.testing.faults import Fault, faulty
from esper.testing.forging import adapter

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Place]:
    """Start a Ray of this machine alone, without a word to its makers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray = pytest.importorskip("ray")
        from esper.services.tezzeret.ray_child import placed_in

        yield placed_in(None)
        ray.shutdown()


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
