"""The database itself refuses a status that may not follow, whoever writes."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from esper.contracts.kernel import BlueprintStatus, CompiledKernelContract, KernelStatus
from esper.errors import IllegalTransition
from esper.services.urza import transitions
from esper.services.urza.database import engine_at
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.models import JobStatus
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

WORDS = {transitions.BLUEPRINT: BlueprintStatus, transitions.KERNEL: KernelStatus, transitions.JOB: JobStatus}


@pytest.fixture
async def kernel(library: KernelManager) -> CompiledKernelContract:
    await library.submit(request_for(adapter(), tags=("a",)))
    job = await library.claim("w", lease_s=30.0)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"bytes")
    return await library.complete(job.job_id, "w", artifact, verdict_on(artifact))


async def by_hand(url: str, *statements: str) -> None:
    engine = engine_at(url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()


@pytest.mark.parametrize("subject", WORDS)
def test_the_table_has_every_status_and_no_other(subject: str) -> None:
    pairs = transitions.PAIRS[subject]
    words = {word.value for word in WORDS[subject]}
    assert set(pairs) == words | {""}
    assert {target for targets in pairs.values() for target in targets} <= words


@pytest.mark.parametrize("subject", WORDS)
async def test_only_the_pairs_of_the_table_are_let_through(
    database_url: str, library: KernelManager, kernel: CompiledKernelContract, subject: str
) -> None:
    pairs, refused, expected = transitions.PAIRS[subject], 0, list[bool]()
    # With the triggers away a row can be brought to any status, so that each pair is tried from there.
    postgres = database_url.startswith("postgresql")
    for source in WORDS[subject]:
        for target in WORDS[subject]:
            replica = ["SET session_replication_role = replica"] if postgres else []
            place = [f"UPDATE {subject} SET status = '{source.value}'"]
            if not postgres:
                place = [f"DROP TRIGGER {subject}_status_next", *place, trigger_of(subject)]
            await by_hand(database_url, *replica, *place)
            allowed = source is target or target.value in pairs[source.value]
            try:
                await by_hand(database_url, f"UPDATE {subject} SET status = '{target.value}'")
            except IntegrityError as error:
                expected.append(not allowed)
                refused += transitions.REFUSAL in str(error)
            else:
                expected.append(allowed)
    assert all(expected)
    between = sum(len(targets) for source, targets in pairs.items() if source)
    assert refused == len(expected) - between - len(WORDS[subject])


def trigger_of(subject: str) -> str:
    return next(
        one for one in transitions.triggers("sqlite") if one.startswith(f"CREATE TRIGGER {subject}_status_next")
    )


async def test_the_manager_says_which_step_is_missing(library: KernelManager, kernel: CompiledKernelContract) -> None:
    await library.set_kernel_status(kernel.kernel_id, KernelStatus.RETIRED)
    with pytest.raises(IllegalTransition, match="may not follow"):
        await library.set_kernel_status(kernel.kernel_id, KernelStatus.PENDING_VALIDATION)
    await library.set_kernel_status(kernel.kernel_id, KernelStatus.VALIDATED)
    with pytest.raises(IllegalTransition):
        await library.set_blueprint_status(kernel.blueprint_id, BlueprintStatus.COMPILING)


async def test_no_kernel_is_validated_without_a_passed_report(
    library: KernelManager, kernel: CompiledKernelContract, database_url: str
) -> None:
    await library.set_kernel_status(kernel.kernel_id, KernelStatus.RETIRED)
    await by_hand(database_url, "DELETE FROM validation_reports")
    with pytest.raises(IllegalTransition, match="no passed validation report"):
        await library.set_kernel_status(kernel.kernel_id, KernelStatus.VALIDATED)


async def test_a_kernel_cannot_begin_validated(database_url: str, kernel: CompiledKernelContract) -> None:
    columns = (
        "blueprint_id, size_bytes, status, compilation_time_ms, target_device, optimization_level, compiler_version,"
        " validation_passed, validation_metrics, safety_checks_passed, benchmark_results, created_at, updated_at"
    )
    copied = f"INSERT INTO kernels (id, kernel_binary_ref, {columns}) "
    copied += f"SELECT 'sha256:x', kernel_binary_ref, {columns} FROM kernels"
    with pytest.raises(IntegrityError, match=transitions.REFUSAL):
        await by_hand(database_url, copied)


async def test_a_kernel_cannot_refer_to_bytes_that_have_no_row(
    database_url: str, kernel: CompiledKernelContract
) -> None:
    with pytest.raises(IntegrityError):
        await by_hand(database_url, "UPDATE kernels SET kernel_binary_ref = 'sha256:gone'")
    with pytest.raises(IntegrityError):
        await by_hand(database_url, "DELETE FROM blobs")
