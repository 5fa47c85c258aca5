"""What the artifact store must do beside `LibraryContract`, as a suite; subclasses give a fixture ``library``.

Searches are held against a plain filter over everything that is stored.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from esper.contracts.adaptation import Outcome, Verdict
from esper.contracts.kernel import (
    BlueprintContract,
    BlueprintStatus,
    BuildSpec,
    CompiledKernelContract,
    GateResult,
    KernelStatus,
)
from esper.contracts.store import BlueprintQuery, BlueprintRecord, KernelQuery, KernelRecord, LineageEntry, Match
from esper.errors import Conflict, ContractError, IllegalTransition, KernelRejected, NotFound
from esper.ir import digest_of
from esper.services.clients import UrzaClient
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, artifact_of, form_of, request_for, verdict_on
from esper.testing.library_contract import built, claimed, finishing, refused

Store: TypeAlias = KernelManager | UrzaClient

NAMES = ("Gated Convolution", "gated-mixer", "Plain convolution")
LONG = bytes(range(256)) * 8_192
"""Two MiB: it goes in pieces everywhere."""


class StoreContract:
    """The laws of the store in process and of its client over HTTP, one test each."""

    async def test_every_filter_finds_what_a_plain_filter_finds(self, library: Store) -> None:
        known = await catalogue(library)
        for query, fits in KERNELS:
            found = (await library.search(KernelQuery.model_validate({"limit": 200} | query))).kernels
            wanted = [kernel for kernel in known if fits(kernel)]
            assert found == wanted, query
            assert 0 < len(wanted) < len(known) or not query, f"{query} is no question"

    async def test_pages_of_kernels_hold_each_one_once_and_in_order(self, library: Store) -> None:
        known = await catalogue(library)
        for query, fits in KERNELS:
            found: list[KernelRecord] = []
            cursor = None
            while True:
                asked = KernelQuery.model_validate({"limit": 2, "cursor": cursor} | query)
                page = await library.search(asked)
                assert len(page.kernels) <= 2
                found += page.kernels
                if (cursor := page.cursor) is None:
                    break
            assert found == [kernel for kernel in known if fits(kernel)], query

    async def test_a_cursor_that_no_page_gave_is_refused(self, library: Store) -> None:
        await refused(library.search(KernelQuery(cursor="nothing of yours")), ContractError)
        await refused(library.search_blueprints(BlueprintQuery(cursor="nothing of yours")), ContractError)

    async def test_blueprints_are_found_by_tags_status_and_words_page_by_page(self, library: Store) -> None:
        await catalogue(library)
        known = (await library.search_blueprints(BlueprintQuery(limit=200))).blueprints
        assert [(one.name, one.version) for one in known] == sorted((one.name, one.version) for one in known)
        for query, fits in BLUEPRINTS:
            found: list[BlueprintRecord] = []
            cursor = None
            while True:
                asked = BlueprintQuery.model_validate({"limit": 2, "cursor": cursor} | query)
                page = await library.search_blueprints(asked)
                found += page.blueprints
                if (cursor := page.cursor) is None:
                    break
            wanted = [blueprint for blueprint in known if fits(blueprint)]
            assert found == wanted, query
            assert 0 < len(wanted) < len(known) or not query, f"{query} is no question"

    async def test_a_record_says_what_was_stored(self, library: Store) -> None:
        kernel = (await catalogue(library))[0]
        assert await library.get_kernel(kernel.kernel_id) == kernel
        blueprint = await library.get_blueprint(kernel.blueprint_id)
        assert (blueprint.name, blueprint.version, blueprint.tags) == (kernel.name, kernel.version, kernel.tags)
        assert blueprint.metadata == {"of": "the suite"}
        report = await library.get_report(kernel.kernel_id)
        assert (report.kernel_id, report.passed) == (kernel.kernel_id, True)
        for missing in (library.get_kernel(ZERO), library.get_blueprint(ZERO), library.get_report(ZERO)):
            await refused(missing, NotFound)

    async def test_lineage_goes_up_to_the_origin_and_down_to_the_youngest(self, library: Store) -> None:
        line = [await stored(library, 1)]
        for width in range(2, 6):
            line.append(await stored(library, width, parent_id=line[-1]))
        aside = await stored(library, 9, parent_id=line[0])
        await library.submit(request_for(adapter(5)))
        job = await claimed(library, "w")
        kernel = artifact_of(job.blueprint_id, b"the youngest")
        await library.complete(job.job_id, "w", kernel, verdict_on(kernel))
        up = await library.get_ancestors(line[-1])
        assert in_short(up) == [(key, depth) for depth, key in enumerate(reversed(line))]
        assert await library.get_kernel_lineage(kernel.artifact_id) == up
        down = await library.get_descendants(line[0], limit=200)
        assert in_short(down)[0] == (line[0], 0)
        assert set(in_short(down)[1:3]) == {(line[1], 1), (aside, 1)}
        assert in_short(down)[3:] == [(key, depth) for depth, key in enumerate(line[2:], 2)]
        assert in_short(await library.get_descendants(line[0], limit=1)) == [(line[0], 0)]
        assert (await library.get_blueprint(aside)).parent_id == line[0]
        await refused(stored(library, 10, parent_id=ZERO), NotFound)

    async def test_outcomes_are_counted_for_a_kernel_and_for_its_blueprint(self, library: Store) -> None:
        first, second = await built(library, 1), await built(library, 2)
        told = [
            (first, Verdict.KEPT, 0.5), (first, Verdict.KEPT, None), (first, Verdict.CULLED, -0.25),
            (first, Verdict.ROLLED_BACK, None), (second, Verdict.CANCELLED, None),
        ]  # fmt: skip
        for number, (kernel, verdict, gain) in enumerate(told):
            await library.report(outcome(number, kernel, verdict, gain))
        found = await library.kernel_statistics(first.kernel_id)
        assert (found.kept, found.culled, found.rolled_back, found.cancelled, found.measured) == (2, 1, 1, 0, 2)
        assert found.mean_gain == 0.125
        assert await library.blueprint_statistics(first.blueprint_id) == found
        other = await library.kernel_statistics(second.kernel_id)
        assert (other.cancelled, other.measured, other.mean_gain) == (1, 0, None)
        await library.report(outcome(0, first, Verdict.CULLED, None))
        again = await library.kernel_statistics(first.kernel_id)
        assert (again.kept, again.culled, again.mean_gain) == (1, 2, -0.25)

    async def test_a_kernel_follows_its_table_of_statuses(self, library: Store) -> None:
        kernel = await built(library, 1)
        assert (await library.set_kernel_status(kernel.kernel_id, KernelStatus.RETIRED)).status is KernelStatus.RETIRED
        await refused(library.read(kernel.kernel_id), KernelRejected)
        await refused(library.set_kernel_status(kernel.kernel_id, KernelStatus.PENDING_VALIDATION), IllegalTransition)
        await library.set_kernel_status(kernel.kernel_id, KernelStatus.VALIDATED)
        assert await library.read(kernel.kernel_id) == b"kernel 1"
        await library.set_kernel_status(kernel.kernel_id, KernelStatus.REJECTED)
        await refused(library.set_kernel_status(kernel.kernel_id, KernelStatus.VALIDATED), IllegalTransition)
        await refused(library.set_kernel_status(ZERO, KernelStatus.RETIRED), NotFound)

    async def test_a_blueprint_follows_its_table_of_statuses(self, library: Store) -> None:
        key = await stored(library, 1)
        await refused(library.set_blueprint_status(key, BlueprintStatus.DEPLOYED), IllegalTransition)
        assert (await library.get_blueprint(key)).status is BlueprintStatus.UNVALIDATED
        changed = await library.set_blueprint_status(key, BlueprintStatus.QUARANTINED)
        assert changed == await library.get_blueprint(key)
        assert changed.status is BlueprintStatus.QUARANTINED
        await refused(library.set_blueprint_status(ZERO, BlueprintStatus.QUARANTINED), NotFound)

    async def test_bytes_come_in_pieces_whole_or_in_part(self, library: Store) -> None:
        kernel = await long_kernel(library)
        found = hashlib.sha256()
        async for piece in streamed(library, kernel.kernel_id):
            assert len(piece) < len(LONG), "it came in one"
            found.update(piece)
        assert f"sha256:{found.hexdigest()}" == kernel.kernel_id
        size = len(LONG)
        for start, stop in ((0, 1), (7, 300_000), (1_000_001, None), (size - 1, size)):
            assert await part(library, kernel.kernel_id, start, stop) == LONG[start:stop], (start, stop)
        await refused(part(library, kernel.kernel_id, size + 1), ContractError)
        await refused(part(library, ZERO, 0), NotFound)
        await library.set_kernel_status(kernel.kernel_id, KernelStatus.RETIRED)
        await refused(part(library, kernel.kernel_id, 0), KernelRejected)

    async def test_bytes_that_are_not_what_was_said_are_not_stored(self, library: Store) -> None:
        await library.submit(request_for(adapter()))
        artifact = artifact_of(adapter().digest, LONG)
        head = artifact.model_copy(update={"kernel_binary": b""})
        for size, data in ((len(LONG), LONG[:-1] + b"x"), (len(LONG) - 1, LONG[:-1])):
            await refused(library.upload(artifact.artifact_id, size, cut(data)), ContractError)
            await refused(library.register_uploaded(head), NotFound)
        await library.upload(artifact.artifact_id, len(LONG), cut(LONG))
        assert (await library.register_uploaded(head)).status is KernelStatus.PENDING_VALIDATION

    async def test_bytes_are_stored_once_whoever_brings_them(self, library: Store) -> None:
        kernel = await long_kernel(library)
        await asyncio.gather(*(library.upload(kernel.kernel_id, len(LONG), cut(LONG)) for _ in range(3)))
        assert await library.read(kernel.kernel_id) == LONG

    async def test_a_kernel_from_elsewhere_opens_with_its_report_and_once(self, library: Store) -> None:
        await library.submit(request_for(adapter()))
        artifact = artifact_of(adapter().digest, b"from elsewhere")
        kernel = await library.upload_kernel(artifact)
        assert kernel.status is KernelStatus.PENDING_VALIDATION
        await refused(library.read(kernel.kernel_id), KernelRejected)
        assert await library.upload_kernel(artifact) == kernel
        assert (await library.store_report(verdict_on(artifact))).status is KernelStatus.VALIDATED
        await refused(library.store_report(verdict_on(artifact)), Conflict)
        await refused(library.upload_kernel(artifact_of(ZERO, b"of nothing")), NotFound)
        await refused(
            library.upload_kernel(artifact.model_copy(update={"artifact_id": digest_of(b"another")})), KernelRejected
        )

    async def test_a_job_is_completed_and_finished_with_bytes_that_were_uploaded_before(self, library: Store) -> None:
        await finishing(library)
        job, made = await claimed(library, "w"), form_of(b"a program")
        await refused(library.finish_uploaded(job.job_id, "w", [made]), NotFound)
        await library.upload(made.form.digest, made.form.size_bytes, cut(made.data))
        await library.finish_uploaded(job.job_id, "w", [made.model_copy(update={"data": b""})])
        kernel_id = digest_of(b"proven")
        assert [kept.form for kept in await library.forms(kernel_id)] == [made.form]
        assert await library.read_form(kernel_id, made.form.digest) == b"a program"

    async def test_a_kernel_has_an_address_for_others_or_none(self, library: Store) -> None:
        kernel = await built(library, 1)
        link = await library.link(kernel.kernel_id, expires_s=60.0)
        assert link is None or link.startswith("http")
        await refused(library.link(ZERO, expires_s=60.0), NotFound)


ZERO = "sha256:" + "0" * 64

KERNELS: list[tuple[dict[str, object], Callable[[KernelRecord], bool]]] = [
    ({}, lambda kernel: True),
    ({"tags": ["t0", "t2"]}, lambda kernel: bool({"t0", "t2"} & set(kernel.tags))),
    ({"tags": ["t0", "even"], "match": Match.ALL}, lambda kernel: {"t0", "even"} <= set(kernel.tags)),
    ({"status": KernelStatus.REJECTED}, lambda kernel: kernel.status is KernelStatus.REJECTED),
    ({"device": "cuda:0"}, lambda kernel: kernel.target_device == "cuda:0"),
    ({"min_performance": 5.0}, lambda kernel: kernel.throughput is not None and kernel.throughput >= 5.0),
    ({"max_latency_ms": 0.75}, lambda kernel: kernel.latency_ms is not None and kernel.latency_ms <= 0.75),
    ({"max_memory_mb": 0.5}, lambda kernel: kernel.size_bytes <= 2**19),
    ({"has_params": True}, lambda kernel: kernel.num_params is not None and kernel.num_params > 0),
    ({"has_params": False}, lambda kernel: kernel.num_params == 0),
    ({"name": "gat"}, lambda kernel: kernel.name.lower().startswith("gated")),
    ({"name": "CONV gated"}, lambda kernel: kernel.name == "Gated Convolution"),
    ({"blueprint_id": adapter(3).digest}, lambda kernel: kernel.blueprint_id == adapter(3).digest),
    (
        {"tags": ["even"], "status": KernelStatus.VALIDATED, "min_performance": 2.0},
        lambda kernel: "even" in kernel.tags and kernel.status is KernelStatus.VALIDATED and (kernel.throughput or 0) >= 2,
    ),
]  # fmt: skip
"""A question, and the plain filter that answers it."""

BLUEPRINTS: list[tuple[dict[str, object], Callable[[BlueprintRecord], bool]]] = [
    ({}, lambda blueprint: True),
    ({"tags": ["t1", "t2"]}, lambda blueprint: bool({"t1", "t2"} & set(blueprint.tags))),
    ({"tags": ["t2", "even"], "match": Match.ALL}, lambda blueprint: {"t2", "even"} <= set(blueprint.tags)),
    ({"status": BlueprintStatus.REJECTED}, lambda blueprint: blueprint.status is BlueprintStatus.REJECTED),
    ({"name": "convol"}, lambda blueprint: "onvolution" in blueprint.name),
    ({"name": "mix", "tags": ["t1"]}, lambda blueprint: blueprint.name == "gated-mixer" and "t1" in blueprint.tags),
]


async def catalogue(library: Store) -> list[KernelRecord]:
    """Store a dozen kernels that differ in all that can be asked for; return them in the order of every list."""
    for width in range(1, 13):
        await stored(
            library, width, name=NAMES[width % 3], tags=[f"t{width % 4}", *(["even"] if width % 2 == 0 else [])]
        )
        await library.submit(request_for(adapter(width)))
        job = await claimed(library, "w")
        size = 2**20 if width % 5 == 0 else 1_000
        artifact = artifact_of(job.blueprint_id, bytes([width]) * size)
        artifact = artifact.model_copy(update={"target_device": "cuda:0" if width % 3 == 0 else "cpu"})
        report = verdict_on(
            artifact, throughput=None if width == 7 else float(width), reasons=("off",) if width == 4 else ()
        )
        assert report.performance is not None
        speed = report.performance.model_copy(
            update={"metrics": report.performance.metrics | {"latency_p50_ms": width / 8}}
        )
        counted = GateResult(passed=True, metrics={"params": float(width % 2 * 100)})
        report = report.model_copy(update={"performance": speed, "safety": counted})
        await library.complete(job.job_id, "w", artifact, report)
    records = [await library.get_kernel(digest_of(bytes([n]) * (2**20 if n % 5 == 0 else 1_000))) for n in range(1, 13)]
    return sorted(
        records, key=lambda kernel: (kernel.throughput is None, -(kernel.throughput or 0.0), kernel.kernel_id)
    )


async def stored(
    library: Store,
    width: int,
    *,
    name: str = "line",
    tags: list[str] | None = None,
    parent_id: str | None = None,
) -> str:
    """Store a design without asking for its build; return its address."""
    ir = adapter(width)
    contract = BlueprintContract(
        blueprint_id=ir.digest, name=name, architecture_ir=ir.to_json(), tags=tags or [], metadata={"of": "the suite"}
    )
    return await library.store_blueprint(contract, parent_id)


async def long_kernel(library: Store) -> CompiledKernelContract:
    """Have a kernel of two MiB, whose bytes were streamed up."""
    await library.submit(request_for(adapter(), build=BuildSpec()))
    job, artifact = await claimed(library, "w"), artifact_of(adapter().digest, LONG)
    await library.upload(artifact.artifact_id, len(LONG), cut(LONG))
    head = artifact.model_copy(update={"kernel_binary": b""})
    return await library.complete_uploaded(job.job_id, "w", head, verdict_on(artifact))


async def cut(data: bytes) -> AsyncIterator[bytes]:
    """Yield bytes piece by piece."""
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def streamed(library: Store, kernel_id: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
    """Yield the bytes of a kernel as they come; over HTTP there is a connection to be given back."""
    if isinstance(library, KernelManager):
        async for piece in await library.stream(kernel_id, start, stop):
            yield piece
        return
    async with library.stream(kernel_id, start, stop) as pieces:
        async for piece in pieces:
            yield piece


async def part(library: Store, kernel_id: str, start: int, stop: int | None = None) -> bytes:
    """Read a kernel from one byte to another."""
    return b"".join([piece async for piece in streamed(library, kernel_id, start, stop)])


def in_short(line: list[LineageEntry]) -> list[tuple[str, int]]:
    """Return who is in a line and how far."""
    return [(entry.blueprint_id, entry.depth) for entry in line]


def outcome(number: int, kernel: CompiledKernelContract, verdict: Verdict, gain: float | None) -> Outcome:
    """Return what one decision brought."""
    return Outcome(
        decision_id=f"decision-{number}", run_id="run", slot="fc", seed_idx=0, blueprint="adapter",
        kernel_id=kernel.kernel_id, verdict=verdict, gain=gain, gain_error=None, params=10, steps=100,
    )  # fmt: skip
