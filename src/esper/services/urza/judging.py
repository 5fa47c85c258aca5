"""What a validation says becomes what a kernel may do."""

from sqlalchemy import delete
from sqlalchemy.orm import Session

from esper.contracts.kernel import KernelStatus, Measurement, ValidationResult
from esper.services.urza.base import now
from esper.services.urza.models import BenchmarkResult, Kernel, ValidationReport
from esper.services.urza.records import measure
from esper.services.urza.standing import call


def judge(session: Session, kernel: Kernel, report: ValidationResult) -> None:
    """Write the report of a kernel; only then is it validated, and only if every gate let it pass."""
    measure(kernel, report)
    session.add(ValidationReport(kernel_id=kernel.id, passed=report.passed, content=report.model_dump(mode="json")))
    session.flush()
    if report.performance is not None:
        _compare(session, kernel, report.performance)
    kernel.validation_passed, kernel.safety_checks_passed = report.passed, report.safety.passed
    kernel.status = KernelStatus.VALIDATED if report.passed else KernelStatus.REJECTED
    session.flush()


def measured(session: Session, kernel: Kernel, performance: Measurement) -> None:
    """Write what was measured of a kernel, in the place of what was measured before.

    One that is too slow is withdrawn from those that may be grafted; one that was withdrawn for another reason stays so.
    """
    row = session.get(ValidationReport, kernel.id)
    if row is not None:
        report = ValidationResult.model_validate(row.content).model_copy(update={"performance": performance})
        reviewed(session, kernel, report)


def reviewed(session: Session, kernel: Kernel, report: ValidationResult) -> None:
    """Put a later report in the place of the one that a kernel was judged by.

    A kernel that does not pass it is withdrawn from those that may be grafted; one that was withdrawn before stays so.
    """
    row = session.get(ValidationReport, kernel.id)
    if row is None or kernel.status is not KernelStatus.VALIDATED:
        return
    measure(kernel, report)
    row.content, row.passed = report.model_dump(mode="json"), report.passed
    if report.performance is not None:
        _compare(session, kernel, report.performance)
    if not report.passed:
        kernel.validation_passed, kernel.status = False, KernelStatus.REJECTED
        kernel.safety_checks_passed = report.safety.passed
    session.flush()


def _compare(session: Session, kernel: Kernel, performance: Measurement) -> None:
    """Keep the figures beside those of other kernels on the same hardware, and say where this one stands."""
    row, hardware = BenchmarkResult, performance.hardware or kernel.target_device
    session.execute(delete(row).where(row.kernel_id == kernel.id, row.device == hardware))
    figures = {name: value for name, value in kernel.benchmark_results.items() if isinstance(value, float | int)}
    moment = now()
    session.add_all(
        row(kernel_id=kernel.id, device=hardware, metric=name[:64], value=value, measured_at=moment)
        for name, value in figures.items()
    )
    if performance.passed:
        call(session, kernel, hardware, figures)
    session.flush()
