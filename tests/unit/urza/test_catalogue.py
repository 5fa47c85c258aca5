"""Searching kernels, and following them back to where they come from."""

from itertools import pairwise

import pytest
from sqlalchemy import text

from esper.contracts.kernel import BlueprintContract, BuildSpec, CompiledKernelContract, JsonObject, KernelStatus
from esper.errors import ConfigError, InvalidBlueprint, KernelRejected, NotFound
from esper.ir import digest_of
from esper.services.urza.database import engine_at
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.lineage import MAX_LINE
from esper.services.urza.records import build_key
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on


async def made(
    library: KernelManager,
    width: int,
    *,
    tags: tuple[str, ...] = (),
    throughput: float | None = None,
    sound: bool = True,
) -> CompiledKernelContract:
    """Take one blueprint all the way to a kernel, as a worker would."""
    await library.submit(request_for(adapter(width), tags=tags))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, f"kernel of width {width}".encode())
    report = verdict_on(artifact, throughput=throughput, reasons=() if sound else ("off by 0.5",))
    return await library.complete(job.job_id, "w", artifact, report)


async def by_hand(database_url: str, statement: str) -> None:
    engine = engine_at(database_url)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


def ids(kernels: list[CompiledKernelContract]) -> list[str]:
    return [kernel.kernel_id for kernel in kernels]


async def test_the_fastest_kernel_comes_first_and_those_that_were_not_measured_last(library: KernelManager) -> None:
    unmeasured = await made(library, 1)
    slow, fast = await made(library, 2, throughput=10.0), await made(library, 3, throughput=500.0)
    nothing = await made(library, 4, throughput=0.0)
    found = await library.search_kernels_by_tags([])
    assert [row.id for row in found] == ids([fast, slow, nothing, unmeasured])
    assert [row.throughput for row in found] == [500.0, 10.0, 0.0, None]


async def test_a_minimum_of_zero_leaves_out_what_was_not_measured(library: KernelManager) -> None:
    await made(library, 1)
    measured = [await made(library, 2, throughput=1.0), await made(library, 3, throughput=0.0)]
    assert [row.id for row in await library.search_kernels_by_tags([], min_performance=0.0)] == ids(measured)
    assert [row.id for row in await library.search_kernels_by_tags([], min_performance=1.0)] == ids(measured[:1])
    assert await library.search_kernels_by_tags([], min_performance=1.5) == []


async def test_any_of_the_tags_will_do_and_no_kernel_comes_twice(library: KernelManager) -> None:
    both = await made(library, 1, tags=("fast", "small"), throughput=3.0)
    one = await made(library, 2, tags=("small",), throughput=2.0)
    await made(library, 3, throughput=1.0)
    found = await library.search_kernels_by_tags(["small", "fast", "unheard-of"])
    assert [row.id for row in found] == ids([both, one])
    assert [row.blueprint.tags for row in found] == [["fast", "small"], ["small"]]
    assert await library.search_kernels_by_tags(["unheard-of"]) == []


async def test_a_status_leaves_out_the_others(library: KernelManager) -> None:
    sound, refused = await made(library, 1), await made(library, 2, sound=False)
    for status, expected in ((KernelStatus.VALIDATED, sound), (KernelStatus.REJECTED, refused)):
        assert [row.id for row in await library.search_kernels_by_tags([], status=status)] == ids([expected])
    assert await library.search_kernels_by_tags([], status=KernelStatus.RETIRED) == []


async def test_filters_hold_together(library: KernelManager) -> None:
    await made(library, 1, tags=("a",), throughput=1.0)
    await made(library, 2, tags=("b",), throughput=9.0)
    wanted = await made(library, 3, tags=("a",), throughput=9.0)
    await made(library, 4, tags=("a",), throughput=9.5, sound=False)
    found = await library.search_kernels_by_tags(["a"], status=KernelStatus.VALIDATED, min_performance=5.0)
    assert [row.id for row in found] == ids([wanted])


async def descended(library: KernelManager, generations: int) -> tuple[CompiledKernelContract, list[str]]:
    """Store a line of blueprints, and make a kernel of the youngest; the ids are those of the oldest first."""
    line: list[str] = []
    for width in range(1, generations + 1):
        contract = BlueprintContract(
            blueprint_id="given by the store", name="line", architecture_ir=adapter(width).to_json(), tags=[f"g{width}"]
        )
        line.append(await library.store_blueprint(contract, parent_id=line[-1] if line else None))
    return await made(library, generations), line


async def test_a_kernel_is_followed_back_to_its_origin(library: KernelManager) -> None:
    kernel, line = await descended(library, 5)
    found = await library.get_kernel_lineage(kernel.kernel_id)
    assert [entry.blueprint_id for entry in found] == line[::-1]
    assert [entry.version for entry in found] == [5, 4, 3, 2, 1]
    assert found[-1].tags == ("g1",)
    assert found[0].created_at >= found[-1].created_at


async def test_a_circle_of_parents_is_followed_once(library: KernelManager, database_url: str) -> None:
    kernel, line = await descended(library, 3)
    # No call of the store makes a circle; a restored backup or a hand in the database may.
    await by_hand(database_url, f"UPDATE blueprints SET parent_id = '{line[2]}' WHERE id = '{line[0]}'")
    found = await library.get_kernel_lineage(kernel.kernel_id)
    assert [entry.blueprint_id for entry in found] == line[::-1]


async def test_a_kernel_that_is_not_there_has_no_lineage(library: KernelManager) -> None:
    assert await library.get_kernel_lineage(digest_of(b"nothing")) == []


async def test_a_parent_must_exist_and_be_another(library: KernelManager) -> None:
    contract = BlueprintContract(blueprint_id="", name="mine", architecture_ir=adapter().to_json())
    with pytest.raises(NotFound, match="store the parent first"):
        await library.store_blueprint(contract, parent_id=digest_of(b"nobody"))
    own = await library.store_blueprint(contract)
    with pytest.raises(ConfigError, match="its own parent"):
        await library.store_blueprint(contract, parent_id=own)


async def test_no_blueprint_becomes_its_own_ancestor(library: KernelManager) -> None:
    _, line = await descended(library, 3)
    oldest = BlueprintContract(blueprint_id="", name="line", architecture_ir=adapter(1).to_json())
    with pytest.raises(ConfigError, match="descends from it already"):
        await library.store_blueprint(oldest, parent_id=line[2])


async def test_no_blueprint_becomes_its_own_ancestor_over_a_line_longer_than_any_answer(
    library: KernelManager, database_url: str
) -> None:
    _, (oldest, youngest) = await descended(library, 2)
    between = [f"sha256:{number:064x}" for number in range(MAX_LINE + 5)]
    columns = "id, name, architecture_ir, status, version, parent_id, submitted_by, metadata, created_at, updated_at"
    row = "'{id}', 'between', '{{}}', 'unvalidated', {version}, '{parent}', 'me', '{{}}', '2026-01-02', '2026-01-02'"
    rows = [
        row.format(id=key, version=number, parent=parent)
        for number, (parent, key) in enumerate(pairwise([oldest, *between]))
    ]
    await by_hand(database_url, f"INSERT INTO blueprints ({columns}) VALUES {', '.join(f'({one})' for one in rows)}")
    await by_hand(database_url, f"UPDATE blueprints SET parent_id = '{between[-1]}' WHERE id = '{youngest}'")
    contract = BlueprintContract(blueprint_id="", name="line", architecture_ir=adapter(1).to_json())
    with pytest.raises(ConfigError, match="descends from it already"):
        await library.store_blueprint(contract, parent_id=youngest)


async def test_descendants_are_found_nearest_first(library: KernelManager) -> None:
    _, line = await descended(library, 3)
    sibling = BlueprintContract(blueprint_id="", name="side", architecture_ir=adapter(9).to_json())
    aside = await library.store_blueprint(sibling, parent_id=line[0])
    found = await library.get_descendants(line[0])
    assert [(entry.blueprint_id, entry.depth) for entry in found] == [
        (line[0], 0), *sorted([(line[1], 1), (aside, 1)]), (line[2], 2),
    ]  # fmt: skip
    assert [entry.depth for entry in await library.get_descendants(line[0], limit=3)] == [0, 1, 1]
    assert await library.get_descendants(digest_of(b"nobody")) == []


async def test_an_equal_design_is_the_same_blueprint_and_another_is_the_next_version(library: KernelManager) -> None:
    first, again, other = (
        BlueprintContract(blueprint_id="", name="mine", architecture_ir=adapter(width).to_json(), tags=[tag])
        for width, tag in ((4, "a"), (4, "b"), (5, "a"))
    )
    ids_ = [await library.store_blueprint(contract) for contract in (first, again, other)]
    assert ids_ == [adapter(4).digest, adapter(4).digest, adapter(5).digest]
    kernel = await made(library, 5)
    (entry,) = await library.get_kernel_lineage(kernel.kernel_id)
    assert (entry.name, entry.version) == ("mine", 2)
    tagged = await made(library, 4)
    (entry,) = await library.get_kernel_lineage(tagged.kernel_id)
    assert (entry.version, entry.tags) == (1, ("a", "b"))


async def test_a_response_tells_the_place_in_the_queue_and_when_to_expect_the_kernel(
    library: KernelManager, clock: ManualClock
) -> None:
    await library.submit(request_for(adapter(1)))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    clock.advance(4.0)
    artifact = artifact_of(job.blueprint_id, b"took four seconds")
    await library.complete(job.job_id, "w", artifact, verdict_on(artifact))
    first = await library.submit(request_for(adapter(2)))
    clock.advance(1.0)
    second = await library.submit(request_for(adapter(3)))
    urgent = await library.submit(request_for(adapter(4), priority=9))
    assert [answer.queue_position for answer in (first, second, urgent)] == [1, 2, 1]
    assert [answer.estimated_compilation_time_s for answer in (first, second)] == [4.0, 8.0]


async def test_a_build_that_was_not_asked_for_is_not_there(library: KernelManager) -> None:
    kernel = await made(library, 1)
    assert await library.find(kernel.blueprint_id, BuildSpec(weight_seed=1)) is None
    assert await library.find(digest_of(b"unknown"), BuildSpec()) is None


async def test_a_kernel_that_was_withdrawn_is_not_handed_out_any_more(
    library: KernelManager, database_url: str
) -> None:
    kernel = await made(library, 1)
    await by_hand(database_url, "UPDATE kernels SET status = 'retired'")
    with pytest.raises(KernelRejected, match="it is retired"):
        await library.read(kernel.kernel_id)
    with pytest.raises(KernelRejected, match="it is retired"):
        await library.find(kernel.blueprint_id, BuildSpec())


async def test_a_dead_design_is_refused_on_both_ways_in(library: KernelManager) -> None:
    loud: JsonObject = {
        "layout": "features",
        "channels": 2,
        "nodes": [{"id": "t", "op": "tanh", "inputs": ["input"]}],
        "output": "t",
    }
    with pytest.raises(InvalidBlueprint, match="not neutral"):
        await library.store_blueprint(BlueprintContract(blueprint_id="", name="loud", architecture_ir=loud))
    with pytest.raises(InvalidBlueprint, match="not neutral"):
        await library.submit(request_for(adapter()).model_copy(update={"architecture_ir": loud}))


def test_a_build_is_named_by_everything_that_changes_its_bytes() -> None:
    base = BuildSpec()
    others = [BuildSpec(weight_seed=1), BuildSpec(dtype="float64"), BuildSpec(level="O1")]
    keys = {build_key("sha256:b", build) for build in (base, *others)} | {build_key("sha256:c", base)}
    assert len(keys) == 5
    assert build_key("sha256:b", BuildSpec()) == build_key("sha256:b", base)
