"""Tags say how a kernel stands among others that were measured on the same hardware."""

import pytest

from esper.contracts.kernel import BuildSpec, CompiledKernelContract, Measurement
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.standing import FEWEST_PEERS, TRAITS, Trait
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

SPEED = TRAITS[0]


async def measured(
    library: KernelManager, width: int, value: float, *, hardware: str = "a bench", metric: str = SPEED.metric
) -> CompiledKernelContract:
    await library.submit(request_for(adapter(width), tags=("mine",)))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, f"kernel {width}".encode())
    report = verdict_on(artifact).model_copy(
        update={"performance": Measurement(passed=True, metrics={metric: value}, hardware=hardware)}
    )
    return await library.complete(job.job_id, "w", artifact, report)


async def tags(library: KernelManager, kernel: CompiledKernelContract) -> set[str]:
    return set((await library.get_kernel(kernel.kernel_id)).tags)


@pytest.mark.parametrize("trait", TRAITS, ids=lambda trait: trait.tag)
async def test_a_rule_decides_while_there_are_few_peers(library: KernelManager, trait: Trait) -> None:
    good = await measured(library, 1, trait.rule, metric=trait.metric)
    other = await measured(library, 2, trait.rule * 1.01, metric=trait.metric)
    assert await tags(library, good) == {"mine", trait.tag}
    assert await tags(library, other) == {"mine"}
    found = await library.search_kernels_by_tags([trait.tag])
    assert [row.id for row in found] == [good.kernel_id]


async def test_the_best_quarter_decides_once_there_are_enough(library: KernelManager) -> None:
    for rank in range(FEWEST_PEERS):
        await measured(library, 1 + rank, 100.0 + rank)
    quick = await measured(library, 90, 104.5)
    slow = await measured(library, 91, 112.5)
    assert SPEED.tag in await tags(library, quick), "far over the rule, and faster than three quarters"
    assert SPEED.tag not in await tags(library, slow)


async def test_only_peers_on_the_same_hardware_count(library: KernelManager) -> None:
    for rank in range(FEWEST_PEERS):
        await measured(library, 1 + rank, 100.0, hardware="another bench")
    assert SPEED.tag not in await tags(library, await measured(library, 90, 50.0))
    assert SPEED.tag in await tags(library, await measured(library, 91, 50.0, hardware="another bench"))


async def test_a_later_measurement_takes_a_tag_away(library: KernelManager) -> None:
    first = await measured(library, 1, SPEED.rule)
    again = BuildSpec(level="O2")
    await library.submit(request_for(adapter(1), build=again))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"kernel 1")
    await library.complete(job.job_id, "w", artifact, verdict_on(artifact))
    finishing = await library.claim("w", lease_s=30.0)
    assert finishing is not None
    slower = Measurement(passed=True, metrics={SPEED.metric: SPEED.rule * 2}, hardware="a bench")
    before = await library.get_blueprint(first.blueprint_id)
    await library.finish(finishing.job_id, "w", [], slower)
    assert await tags(library, first) == {"mine"}
    after = await library.get_blueprint(first.blueprint_id)
    assert (after.tags, after.updated_at > before.updated_at) == (["mine"], True)
