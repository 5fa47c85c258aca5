"""What a validation says becomes what a kernel may do."""

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.kernel import GateResult, KernelStatus, ValidationResult
from esper.services.urza.base import now
from esper.services.urza.models import BenchmarkResult, Kernel, ValidationReport
from esper.services.urza.records import measure


async def judge(session: AsyncSession, kernel: Kernel, report: ValidationResult) -> None:
    """Write the report of a kernel; only then is it validated, and only if every gate let it pass."""
    measure(kernel, report)
    await session.flush()
    session.add(ValidationReport(kernel_id=kernel.id, passed=report.passed, content=report.model_dump(mode="json")))
    session.add_all(_figures(kernel))
    await session.flush()
    kernel.validation_passed, kernel.safety_checks_passed = report.passed, report.safety.passed
    kernel.status = KernelStatus.VALIDATED if report.passed else KernelStatus.REJECTED
    await session.flush()


async def measure_again(session: AsyncSession, kernel: Kernel, performance: GateResult) -> None:
    """Put a later measurement in the place of the one that a kernel was judged by.

    One that is too slow is withdrawn from those that may be grafted; one that was withdrawn for another reason stays so.
    """
    row = await session.get(ValidationReport, kernel.id)
    if row is None or kernel.status is not KernelStatus.VALIDATED:
        return
    report = ValidationResult.model_validate(row.content).model_copy(update={"performance": performance})
    measure(kernel, report)
    row.content, row.passed = report.model_dump(mode="json"), report.passed
    await session.execute(delete(BenchmarkResult).where(BenchmarkResult.kernel_id == kernel.id))
    session.add_all(_figures(kernel))
    if not report.passed:
        kernel.validation_passed, kernel.status = False, KernelStatus.REJECTED
    await session.flush()


def _figures(kernel: Kernel) -> list[BenchmarkResult]:
    figures = {name: value for name, value in kernel.benchmark_results.items() if isinstance(value, float | int)}
    moment = now()
    return [
        BenchmarkResult(
            kernel_id=kernel.id, device=kernel.target_device, metric=name[:64], value=value, measured_at=moment
        )
        for name, value in figures.items()
    ]
