"""What the artifact store must do beside `LibraryContract`, as a suite; subclasses give a fixture ``library``.

Searches are held against a plain filter over everything that is stored.
"""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator
from itertools import product

from esper.contracts.adaptation import Verdict
from esper.contracts.kernel import (
    BlueprintStatus,
    BuildSpec,
    CompiledKernelContract,
    KernelStatus,
)
from esper.contracts.store import (
    MAX_DESCENDANTS,
    MAX_PAGE,
    BlueprintQuery,
    BlueprintRecord,
    KernelQuery,
    KernelRecord,
    LineageEntry,
    OutcomeStatistics,
)
from esper.errors import Conflict, ContractError, IllegalTransition, KernelRejected, NotFound
from esper.ir import digest_of
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, artifact_of, form_of, request_for, verdict_on
from esper.testing.questions import BLUEPRINTS, KERNELS, Store, catalogue, stored
from esper.testing.stocking import LEASE_S, built, claimed, finishing, outcome_of, refused

LONG = bytes(range(256)) * 8_192
"""Two MiB: it goes in pieces everywhere."""

LEGAL = {
    (KernelStatus.PENDING_VALIDATION, KernelStatus.REJECTED),
    (KernelStatus.VALIDATED, KernelStatus.RETIRED),
    (KernelStatus.VALIDATED, KernelStatus.REJECTED),
    (KernelStatus.RETIRED, KernelStatus.VALIDATED),
}
"""Statuses of a kernel of which the second may follow the first, by hand; only a report opens one that waits for it."""


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

    async def test_pages_hold_each_kernel_once_while_others_come_and_go(self, library: Store) -> None:
        known = [await built(library, width) for width in range(1, 9)]
        found: list[str] = []
        cursor, width = None, 20
        while True:
            page = await library.search(KernelQuery(limit=2, cursor=cursor))
            found += [kernel.kernel_id for kernel in page.kernels]
            if (cursor := page.cursor) is None:
                break
            await built(library, width := width + 1)
            await library.set_kernel_status(found[0], KernelStatus.RETIRED)
        assert len(found) == len(set(found))
        assert {kernel.kernel_id for kernel in known} <= set(found)

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

    async def test_what_is_not_there_has_no_line_and_no_outcomes(self, library: Store) -> None:
        for line in (library.get_ancestors(ZERO), library.get_descendants(ZERO), library.get_kernel_lineage(ZERO)):
            assert await line == []
        for counted in (library.kernel_statistics(ZERO), library.blueprint_statistics(ZERO)):
            assert await counted == OutcomeStatistics()

    async def test_a_long_answer_ends_at_the_same_length_everywhere(self, library: Store) -> None:
        first = await stored(library, 1)
        for width in range(2, MAX_PAGE + 3):
            await stored(library, width, parent_id=first)
        assert len(await library.get_descendants(first)) == MAX_PAGE
        assert len(await library.get_descendants(first, limit=MAX_DESCENDANTS)) == MAX_PAGE + 2
        for limit in (-1, 0, MAX_DESCENDANTS + 1):
            await refused(library.get_descendants(first, limit=limit), ContractError)

    async def test_outcomes_are_counted_for_a_kernel_and_for_its_blueprint(self, library: Store) -> None:
        first, second = await built(library, 1), await built(library, 2)
        told = [
            (first, Verdict.KEPT, 0.5), (first, Verdict.KEPT, None), (first, Verdict.CULLED, -0.25),
            (first, Verdict.ROLLED_BACK, None), (second, Verdict.CANCELLED, None),
        ]  # fmt: skip
        for number, (kernel, verdict, gain) in enumerate(told):
            await library.report(outcome_of(f"decision-{number}", kernel.kernel_id, verdict, gain))
        found = await library.kernel_statistics(first.kernel_id)
        assert (found.kept, found.culled, found.rolled_back, found.cancelled, found.measured) == (2, 1, 1, 0, 2)
        assert found.mean_gain == 0.125
        assert await library.blueprint_statistics(first.blueprint_id) == found
        other = await library.kernel_statistics(second.kernel_id)
        assert (other.cancelled, other.measured, other.mean_gain) == (1, 0, None)
        await library.report(outcome_of("decision-0", first.kernel_id, Verdict.CULLED, None))
        again = await library.kernel_statistics(first.kernel_id)
        assert (again.kept, again.culled, again.mean_gain) == (1, 2, -0.25)

    async def test_a_gain_that_is_no_number_counts_as_not_measured(self, library: Store) -> None:
        kernel = await built(library, 1)
        for number, gain in enumerate((0.5, math.nan, math.inf, -math.inf)):
            await library.report(outcome_of(f"decision-{number}", kernel.kernel_id, Verdict.CULLED, gain))
        found = await library.kernel_statistics(kernel.kernel_id)
        assert (found.culled, found.measured, found.mean_gain) == (4, 1, 0.5)

    async def test_a_kernel_follows_its_table_of_statuses(self, library: Store) -> None:
        for number, (source, target) in enumerate(product(KernelStatus, KernelStatus), 1):
            key = await kernel_that_is(library, source, number)
            if source is target or (source, target) in LEGAL:
                assert (await library.set_kernel_status(key, target)).status is target
            else:
                await refused(library.set_kernel_status(key, target), IllegalTransition)
            found = (await library.get_kernel(key)).status
            assert found is (target if (source, target) in LEGAL else source)
            if found is not KernelStatus.VALIDATED:
                await refused(library.read(key), KernelRejected)
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
        for start, nothing in ((size, None), (size + 1, None), (-1, None), (0, 0), (5, 3), (7, 7), (size, size + 9)):
            await refused(part(library, kernel.kernel_id, start, nothing), ContractError)
        await refused(part(library, ZERO, 0), NotFound)
        await library.set_kernel_status(kernel.kernel_id, KernelStatus.RETIRED)
        await refused(part(library, kernel.kernel_id, 0), KernelRejected)

    async def test_bytes_that_are_not_what_was_said_are_not_stored(self, library: Store) -> None:
        await library.submit(request_for(adapter()))
        artifact = artifact_of(adapter().digest, LONG)
        head = artifact.model_copy(update={"kernel_binary": b""})
        size = len(LONG)
        for announced, data in (
            (size, LONG[:-1] + b"x"),
            (size - 1, LONG[:-1]),
            (size + 1, LONG),
            (9, LONG),
            (-1, b""),
        ):
            await refused(library.upload(artifact.artifact_id, announced, cut(data)), ContractError)
            await refused(library.register_uploaded(head), NotFound)
        await refused(library.upload(artifact.artifact_id, size, broken(LONG)), Conflict)
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

    async def test_what_no_store_takes_is_refused_in_the_same_way(self, library: Store) -> None:
        await library.submit(request_for(adapter()))
        for lease_s in (0.0, -1.0, math.nan, math.inf, 3601.0):
            await refused(library.claim("w", lease_s=lease_s), ContractError)
            await refused(library.review("w", "new", lease_s=lease_s), ContractError)
        for worker in ("", "w" * 129):
            await refused(library.claim(worker, lease_s=LEASE_S), ContractError)
        job, made = await claimed(library, "w"), artifact_of(adapter().digest, b"k")
        await refused(library.renew(job.job_id, "w", lease_s=math.nan), ContractError)
        for wrong in ({"target_device": "d" * 65}, {"optimization_level": "O" * 9}, {"compilation_time_ms": math.nan}):
            other = made.model_copy(update=wrong)
            await refused(library.complete(job.job_id, "w", other, verdict_on(made)), ContractError)
            await refused(library.upload_kernel(other), ContractError)
        await refused(library.finish(job.job_id, "w", [form_of(b"p")] * 17), ContractError)
        for name, tags in (("n" * 129, ["t"]), ("n", ["t" * 129]), ("n", [f"t{number}" for number in range(65)])):
            await refused(stored(library, 9, name=name, tags=tags), ContractError)
        await library.fail(job.job_id, "w", "r" * 9_000, retry=False)
        assert str(await refused(library.find(adapter().digest, BuildSpec()), KernelRejected)).count("r" * 4_000) == 1

    async def test_a_kernel_has_an_address_for_others_or_none(self, library: Store) -> None:
        kernel = await built(library, 1)
        link = await library.link(kernel.kernel_id, expires_s=60.0)
        assert link is None or link.startswith("http")
        await refused(library.link(ZERO, expires_s=60.0), NotFound)
        for expires_s in (0.0, 3601.0, math.nan):
            await refused(library.link(kernel.kernel_id, expires_s=expires_s), ContractError)


ZERO = "sha256:" + "0" * 64


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


async def broken(data: bytes) -> AsyncIterator[bytes]:
    """Yield bytes, and fail before the last of them."""
    yield data[:-1]
    raise Conflict("the source of these bytes fails")


async def kernel_that_is(library: Store, status: KernelStatus, width: int) -> str:
    """Have a kernel of a status; return its id."""
    if status is KernelStatus.PENDING_VALIDATION:
        design = await stored(library, width)
        return (await library.upload_kernel(artifact_of(design, bytes([width])))).kernel_id
    kernel = await built(library, width)
    return (await library.set_kernel_status(kernel.kernel_id, status)).kernel_id


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
