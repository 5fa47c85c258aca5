"""Every page of every query holds what a plain loop over all kernels finds, in the same order."""

import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from esper.contracts.kernel import BlueprintStatus, KernelStatus
from esper.contracts.store import BlueprintQuery, BlueprintRecord, KernelQuery, KernelRecord, Match
from esper.errors import ContractError, NotFound
from esper.ir import digest_of
from esper.services.urza import listing, needs, search
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

TAGS = ("conv", "fast", "small", "norm")
NAMES = ("Gated Convolution", "gated_mlp v2", "convolution", "Attention-Head", "größe 3")
DEVICES = ("cpu", "cuda:0")
KERNELS = 24


async def filled(library: KernelManager) -> list[KernelRecord]:
    """Make kernels of every kind, and return them in the order in which every list has them."""
    dice = random.Random(5)
    for width in range(1, KERNELS + 1):
        tags = dice.sample(TAGS, dice.randrange(4))
        request = request_for(adapter(width), tags=tags)
        await library.submit(request.model_copy(update={"name": dice.choice(NAMES)}))
        job = await library.claim("w", lease_s=30.0)
        assert job is not None
        artifact = artifact_of(job.blueprint_id, bytes(dice.randrange(2**12)) + bytes([width]))
        artifact = artifact.model_copy(update={"target_device": dice.choice(DEVICES)})
        report = verdict_on(
            artifact, throughput=dice.choice((None, 0.0, 1.5, 1.5, 70.0)), reasons=dice.choice(((), (), ("off",)))
        )
        measured = report.safety.model_copy(update={"metrics": dice.choice(({}, {"params": 0.0}, {"params": 9.0}))})
        await library.complete(job.job_id, "w", artifact, report.model_copy(update={"safety": measured}))
    records = [row.id for row in await library.search_kernels_by_tags([])]
    return [await library.get_kernel(key) for key in records]


def fits(kernel: KernelRecord, query: KernelQuery) -> bool:
    tags = [tag in kernel.tags for tag in query.tags]
    names = kernel.name.lower().replace("_", " ").replace("-", " ").split()
    wanted = (query.name or "").lower().split()
    return all((
        not tags or (all(tags) if query.match is Match.ALL else any(tags)),
        query.status in (None, kernel.status),
        query.device in (None, kernel.target_device),
        query.min_performance is None or (kernel.throughput is not None and kernel.throughput >= query.min_performance),
        query.max_latency_ms is None or (kernel.latency_ms is not None and kernel.latency_ms <= query.max_latency_ms),
        query.max_memory_mb is None or kernel.size_bytes <= query.max_memory_mb * 2**20,
        query.has_params is None or (kernel.num_params is not None and (kernel.num_params > 0) == query.has_params),
        all(any(name.startswith(word) for name in names) for word in wanted),
    ))  # fmt: skip


def drawn(dice: random.Random) -> KernelQuery:
    def maybe(choices: tuple[object, ...]) -> object:
        return dice.choice(choices) if dice.random() < 0.3 else None

    return KernelQuery.model_validate({
        "tags": dice.sample((*TAGS, "unheard-of"), dice.choice((0, 1, 1, 2, 3))),
        "match": dice.choice(("any", "all")),
        "status": maybe(tuple(KernelStatus)),
        "device": maybe((*DEVICES, "tpu")),
        "min_performance": maybe((-1.0, 0.0, 1.5, 70.0, 71.0)),
        "max_latency_ms": maybe((0.1, 0.5)),
        "max_memory_mb": maybe((0.001, 0.003, 2.0)),
        "has_params": maybe((True, False)),
        "name": maybe(("gat", "CONV", "gated conv", "v", "größe", "nothing", "!", "#")),
        "limit": dice.choice((1, 3, 50)),
    })  # fmt: skip


async def walked(library: KernelManager, query: KernelQuery) -> list[KernelRecord]:
    found: list[KernelRecord] = []
    while True:
        page = await library.search(query)
        assert len(page.kernels) <= query.limit
        found += page.kernels
        if page.cursor is None:
            return found
        assert len(page.kernels) == query.limit
        query = query.model_copy(update={"cursor": page.cursor})


@pytest.fixture
async def kernels(library: KernelManager) -> AsyncIterator[list[KernelRecord]]:
    return await filled(library)


async def test_every_query_finds_what_a_plain_loop_finds(
    library: KernelManager, kernels: list[KernelRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, found = random.Random(7), 0
    for number in range(75):
        # Few blueprints, or many: the two ways must agree.
        monkeypatch.setattr(search, "FEW", (0, 3, 200)[number % 3])
        # Words one by one, or by their beginning: they must agree too.
        monkeypatch.setattr(needs, "FEW_WORDS", (8, 0)[number % 2])
        query = drawn(dice)
        expected = [kernel for kernel in kernels if fits(kernel, query)]
        assert await walked(library, query) == expected, query
        found += bool(expected)
    assert found > 15


async def test_a_page_goes_on_where_the_last_ended_though_faster_kernels_came_since(
    library: KernelManager, kernels: list[KernelRecord]
) -> None:
    first = await library.search(KernelQuery(limit=6))
    assert first.kernels == kernels[:6]
    await library.submit(request_for(adapter(99)))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"fastest")
    await library.complete(job.job_id, "w", artifact, verdict_on(artifact, throughput=1e6))
    second = await library.search(KernelQuery(limit=6, cursor=first.cursor))
    assert second.kernels == kernels[6:12]


async def test_a_kernel_is_found_by_tags_that_its_blueprint_got_later_and_by_its_new_status(
    library: KernelManager,
) -> None:
    await library.submit(request_for(adapter(1)))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"bytes")
    kernel = await library.complete(job.job_id, "w", artifact, verdict_on(artifact))
    await library.submit(request_for(adapter(1), tags=("late",)))
    query = KernelQuery(tags=["late"], status=KernelStatus.RETIRED)
    assert (await library.search(query)).kernels == []
    await library.set_kernel_status(kernel.kernel_id, KernelStatus.RETIRED)
    (found,) = (await library.search(query)).kernels
    assert found.tags == ["late"]
    assert found.updated_at > found.created_at


@pytest.mark.parametrize("cursor", ["x", "e30", "WzEsMl0", "WyJhIiwiYiJd", "!!!", "WzEuMCwiYSIsMl0"])
async def test_a_cursor_of_another_list_is_refused(library: KernelManager, cursor: str) -> None:
    with pytest.raises(ContractError, match="cursor"):
        await library.search(KernelQuery(cursor=cursor))


async def test_every_query_finds_the_blueprints_that_a_plain_loop_finds(
    library: KernelManager, kernels: list[KernelRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    designs = {one.blueprint_id: one for one in [await library.get_blueprint(each.blueprint_id) for each in kernels]}
    listed = sorted(designs.values(), key=lambda one: (one.name, one.version))
    assert all(designs[kernel.blueprint_id].tags == kernel.tags for kernel in kernels)
    dice, found = random.Random(11), 0
    for number in range(60):
        # Few of them, or many: the two ways must agree.
        monkeypatch.setattr(listing, "SORTED", (0, 3, 200)[number % 3])
        monkeypatch.setattr(needs, "FEW_WORDS", (8, 0)[number % 2])
        query = BlueprintQuery.model_validate({
            "tags": dice.sample((*TAGS, "unheard-of"), dice.choice((0, 1, 1, 2, 3))),
            "match": dice.choice(("any", "all")),
            "status": dice.choice((None, None, BlueprintStatus.VALIDATED, BlueprintStatus.REJECTED)),
            "name": dice.choice((None, None, "gat", "CONV", "gated conv", "größe", "nothing", "!", "#")),
            "limit": dice.choice((1, 4, 50)),
        })  # fmt: skip
        expected = [one for one in listed if described(one, query)]
        assert await blueprints_walked(library, query) == expected, query
        found += bool(expected)
    assert found > 15


def described(blueprint: BlueprintRecord, query: BlueprintQuery) -> bool:
    tags = [tag in blueprint.tags for tag in query.tags]
    names = blueprint.name.lower().replace("_", " ").replace("-", " ").split()
    return all((
        not tags or (all(tags) if query.match is Match.ALL else any(tags)),
        query.status in (None, blueprint.status),
        all(any(name.startswith(word) for name in names) for word in (query.name or "").lower().split()),
    ))  # fmt: skip


async def blueprints_walked(library: KernelManager, query: BlueprintQuery) -> list[BlueprintRecord]:
    found: list[BlueprintRecord] = []
    while True:
        page = await library.search_blueprints(query)
        found += page.blueprints
        if page.cursor is None:
            return found
        assert len(page.blueprints) == query.limit
        query = query.model_copy(update={"cursor": page.cursor})


async def test_what_is_not_there_is_not_found(library: KernelManager) -> None:
    nobody = digest_of(b"nobody")
    for asked in (library.get_kernel, library.get_blueprint, library.get_report):
        with pytest.raises(NotFound):
            await asked(nobody)
    with pytest.raises(NotFound):
        await library.set_kernel_status(nobody, KernelStatus.RETIRED)


@pytest.mark.parametrize("text", ["zero\0byte", "half \ud800 character"])
async def test_text_that_no_database_holds_finds_nothing_or_is_refused_as_a_fault_of_the_data(
    library: KernelManager, text: str
) -> None:
    found: list[KernelRecord] = []
    with contextlib.suppress(ContractError):
        found = (await library.search(KernelQuery.model_construct(tags=[text]))).kernels
    assert found == []
