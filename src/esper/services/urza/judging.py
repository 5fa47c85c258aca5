"""What a validation says becomes what a kernel may do."""

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.kernel import KernelStatus, Measurement, ValidationResult
from esper.services.urza.base import now
from esper.services.urza.models import BenchmarkResult, Kernel, ValidationReport
from esper.services.urza.records import measure
from esper.services.urza.standing import call


async def judge(session: AsyncSession, kernel: Kernel, report: ValidationResult) -> None:
    """Write the report of a kernel; only then is it validated, and only if every gate let it pass."""
    measure(kernel, report)
    await session.flush()
    session.add(ValidationReport(kernel_id=kernel.id, passed=report.passed, content=report.model_dump(mode="json")))
    await session.flush()
    if report.performance is not None:
        await _compare(session, kernel, report.performance)
    kernel.validation_passed, kernel.safety_checks_passed = report.passed, report.safety.passed
    kernel.status = KernelStatus.VALIDATED if report.passed else KernelStatus.REJECTED
    await session.flush()


async def measured(session: AsyncSession, kernel: Kernel, performance: Measurement) -> None:
    """Write what was measured of a kernel, in the place of what was measured before.

    One that is too slow is withdrawn from those that may be grafted; one that was withdrawn for another reason stays so.
    """
    row = await session.get(ValidationReport, kernel.id)
    if row is not None:
        report = ValidationResult.model_validate(row.content).model_copy(update={"performance": performance})
        await reviewed(session, kernel, report)


async def reviewed(session: AsyncSession, kernel: Kernel, report: ValidationResult) -> None:
    """Put a later report in the place of the one that a kernel was judged by.

    A kernel that does not pass it is withdrawn from those that may be grafted; one that was withdrawn before stays so.
    """
    row = await session.get(ValidationReport, kernel.id)
    if row is None or kernel.status is not KernelStatus.VALIDATED:
        return
    measure(kernel, report)
    row.content, row.passed = report.model_dump(mode="json"), report.passed
    if report.performance is not None:
        await _compare(session, kernel, report.performance)
    if not report.passed:
        kernel.validation_passed, kernel.status = False, KernelStatus.REJECTED
        kernel.safety_checks_passed = report.safety.passed
    await session.flush()


async def _compare(session: AsyncSession, kernel: Kernel, performance: Measurement) -> None:
    """Keep the figures beside those of other kernels on the same hardware, and say where this one stands."""
    row, hardware = BenchmarkResult, performance.hardware or kernel.target_device
    await session.execute(delete(row).where(row.kernel_id == kernel.id, row.device == hardware))
    figures = {name: value for name, value in kernel.benchmark_results.items() if isinstance(value, float | int)}
    moment = now()
    session.add_all(
        row(kernel_id=kernel.id, device=hardware, metric=name[:64], value=value, measured_at=moment)
        for name, value in figures.items()
    )
    if performance.passed:
        await call(session, kernel, hardware, figures)
    await session.flush()
