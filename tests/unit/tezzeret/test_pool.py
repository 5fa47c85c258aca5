"""Real children build, and what breaks them breaks nothing else."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from esper.blueprints import catalog
from esper.contracts.kernel import BuildSpec, CompileJob
from esper.errors import ChildDied, CompilationError
from esper.ir import REGISTRY, BlueprintIR, Graph, Layout, OpSpec, Site, digest_of, ops
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.orders import Order, order_of
from esper.services.tezzeret.pool import ForgePool, PoolConfig
from esper.services.tezzeret.screening import ForgeLimits
from esper.services.tezzeret.validator import KernelValidator
from esper.testing.faults import Fault, faulty
from esper.testing.forging import adapter

FAULTS = ("esper.testing.faults",)
Pools = Callable[..., ForgePool]


@pytest.fixture
async def pools() -> AsyncIterator[Pools]:
    """Give pools that are closed in the end."""
    made: list[ForgePool] = []

    def make(*, memory_limit_mb: int = 2048, deadline_s: float = 60.0, **config: object) -> ForgePool:
        limits = ForgeLimits(memory_limit_mb=memory_limit_mb, deadline_s=deadline_s)
        made.append(ForgePool(PoolConfig(limits=limits, **config)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


def order(ir: BlueprintIR, build: BuildSpec | None = None) -> Order:
    job = CompileJob(
        job_id="job",
        blueprint_id=ir.digest,
        name=ir.name,
        architecture_ir=ir.to_json(),
        build=build or BuildSpec(),
        priority=5,
        attempt=1,
    )
    return order_of(job, "O2")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_child_builds_what_this_process_would(pools: Pools) -> None:
    pool = pools()
    assert pool.started == 0
    artifact, report = await pool.forge(order(adapter()))
    assert report.passed, report.reasons
    assert digest_of(artifact.kernel_binary) == artifact.artifact_id == report.kernel_id
    assert artifact.artifact_id == KernelCompiler().compile(adapter()).artifact_id
    await pool.forge(order(adapter(2)))
    assert pool.started == 1, "the child is kept"


async def test_a_child_finishes_the_kernel_that_its_build_gives_and_no_other(pools: Pools) -> None:
    pool = pools()
    built, _ = await pool.forge(order(adapter(), BuildSpec(level="O2")))
    assert [made.form.level for made in built.inference] == ["O1"], "what nobody waits for comes later"
    again = replace(order(adapter(), BuildSpec(level="O2")), kernel_id=built.artifact_id)
    again = replace(again, build=BuildSpec(level="O2").model_dump_json().encode())
    added = await pool.finish(again)
    assert [made.form.level for made in added.forms] == ["O2"]
    assert added.performance.metrics["latency_p50_ms"] > 0
    with pytest.raises(CompilationError, match="was not finished"):
        await pool.finish(replace(again, kernel_id="sha256:" + "0" * 64))


@pytest.mark.slow
async def test_the_catalogue_passes_in_reduced_types(pools: Pools) -> None:
    """In a child, as torch's own bfloat16 convolutions are known to crash on some shapes."""
    pool = pools()
    for name in catalog.CATALOG:
        for layout in Layout:
            site = Site(layout, 12, entering=7)
            if REGISTRY.refusal(name, site) is None:
                for dtype in ("bfloat16", "float16"):
                    ir = REGISTRY.build(name, site)
                    _, report = await pool.forge(order(ir, BuildSpec(dtype=dtype)))
                    assert report.passed, report.reasons


async def test_what_a_child_refuses_is_told_with_its_reason_and_it_goes_on(pools: Pools) -> None:
    pool = pools(extensions=FAULTS)
    forged = order(adapter())
    mismatched = Order(blueprint_id="sha256:" + "0" * 64, architecture_ir=forged.architecture_ir, build=forged.build)
    with pytest.raises(CompilationError, match="its architecture has the digest"):
        await pool.forge(mismatched)
    broken = Order(blueprint_id=adapter().digest, architecture_ir=b'{"nodes": 1}', build=forged.build)
    with pytest.raises(CompilationError, match="ESP-3100"):
        await pool.forge(broken)
    _, report = await pool.forge(order(faulty(Fault.WRONG)))
    assert not report.passed
    _, report = await pool.forge(order(faulty(Fault.NOISY)))
    assert report.passed, report.reasons
    assert pool.started == 1


@pytest.mark.slow
async def test_an_extension_of_the_users_own_is_imported_and_marked_untrusted(
    pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_ops.py").write_text(USERS_OPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = pools(extensions=("users_ops",))
    ops.register(OpSpec("users.shrink"))
    try:
        graph = Graph(Layout.FEATURES, 8)
        hidden = graph.apply("users.shrink", graph.linear(graph.input, out=4))
        made = order(graph.finish(graph.linear(hidden, out=8, init="zero"), "mine"))
    finally:
        ops.unregister("users.shrink")
    artifact, report = await pool.forge(made)
    assert report.passed, report.reasons
    assert artifact.metadata["trusted"] == "false"
    assert report.safety.metrics["trusted"] == 0.0


USERS_OPS = '''
"""An operation of the user's own: 0.5 * x."""
from esper.blueprints import register_body
from esper.ir import OpSpec, ops
from esper.reference import register_formula

ops.register(OpSpec("users.shrink"))
register_body("users.shrink", lambda use, tensors: lambda x: 0.5 * x)
register_formula("users.shrink", lambda use, own, inputs, training: 0.5 * inputs[0])
'''


@pytest.mark.slow
async def test_a_worn_child_is_replaced_and_an_idle_one_ended(pools: Pools) -> None:
    pool = pools(jobs_per_child=2)
    for n in range(2):
        await pool.forge(order(adapter(n + 1)))
    assert pool.idle_pids == []
    await pool.forge(order(adapter()))
    assert pool.started == 2
    (idle,) = pool.idle_pids
    await pool.retire(idle_s=60)
    assert pool.idle_pids == [idle]
    await pool.retire(idle_s=0)
    assert pool.idle_pids == []
    assert is_gone(idle)


async def test_a_child_reaches_no_network(pools: Pools) -> None:
    pool = pools(extensions=FAULTS)
    _, report = await pool.forge(order(faulty(Fault.CALLS_HOME)))
    if not pool.isolated:
        pytest.skip("this system gives processes no network of their own")
    assert report.passed, report.reasons


def test_what_calls_home_is_found_where_there_is_a_network() -> None:
    artifact = KernelCompiler().compile(faulty(Fault.CALLS_HOME))
    assert not KernelValidator().validate(artifact, faulty(Fault.CALLS_HOME)).passed


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.SEGFAULT, "signal SIGSEGV"),
        (Fault.KILL, "signal SIGKILL"),
        (Fault.MEMORY, "ran out of memory; 256 MiB are allowed"),
    ],
)
async def test_a_fork_for_each_job_dies_alone(pools: Pools, fault: Fault, said: str) -> None:
    pool = pools(extensions=FAULTS, fork_per_job=True, memory_limit_mb=256)
    for width in (1, 2):
        with pytest.raises(ChildDied, match=said):
            await pool.forge(order(faulty(fault)))
        artifact, report = await pool.forge(order(adapter(width)))
        assert report.passed, report.reasons
        assert artifact.artifact_id == KernelCompiler().compile(adapter(width)).artifact_id
    assert pool.started == 1


@pytest.mark.chaos
async def test_a_fork_that_hangs_is_ended_alone(pools: Pools) -> None:
    pool = pools(extensions=FAULTS, fork_per_job=True, deadline_s=2.0)
    await pool.forge(order(adapter()))
    with pytest.raises(ChildDied, match="it took longer than 2 s"):
        await pool.forge(order(faulty(Fault.HANG)))
    assert (await pool.forge(order(adapter(2))))[1].passed
    assert pool.started == 1


@pytest.mark.chaos
async def test_a_build_that_hangs_holds_up_no_other(pools: Pools) -> None:
    pool = pools(extensions=FAULTS, spare_children=1, deadline_s=60.0)
    await pool.forge(order(adapter()))
    hanging = asyncio.create_task(pool.forge(order(faulty(Fault.HANG))))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        for width in (1, 2):
            assert (await pool.forge(order(adapter(width))))[1].passed
    assert pool.started == 2
    assert not hanging.done()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging


@pytest.mark.chaos
async def test_a_child_that_dies_idle_is_replaced_without_a_word(pools: Pools) -> None:
    pool = pools()
    await pool.forge(order(adapter()))
    (pid,) = pool.idle_pids
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while pool.idle_pids:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    _, report = await pool.forge(order(adapter()))
    assert report.passed
    assert pool.started == 2


@pytest.mark.chaos
async def test_a_job_that_is_cancelled_takes_its_child_with_it_and_no_other(pools: Pools) -> None:
    pool = pools(extensions=FAULTS)
    await pool.forge(order(adapter()))
    (pid,) = pool.idle_pids
    hanging = asyncio.create_task(pool.forge(order(faulty(Fault.HANG))))
    await asyncio.sleep(0.3)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert is_gone(pid)
    assert (await pool.forge(order(adapter())))[1].passed


def test_neither_pool_nor_worker_imports_torch() -> None:
    program = "import sys, esper.services.tezzeret.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_child_is_ready_without_torchs_tracer_which_half_of_its_start_would_be() -> None:
    program = "import sys, esper.services.tezzeret.build; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
