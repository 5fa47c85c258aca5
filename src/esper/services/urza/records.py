"""From rows to the contracts that leave the store, and from requests to keys."""

import json
import math
from collections.abc import Mapping

from esper.blueprints import OP_LIBRARY
from esper.contracts.kernel import (
    BuildSpec,
    CompiledKernelArtifact,
    CompiledKernelContract,
    CompileJob,
    JobPhase,
    KernelStatus,
    ValidationResult,
)
from esper.ir import digest_of
from esper.services.urza.models import CompileJobRow, Kernel

_MIB = 2**20


def build_key(blueprint_id: str, build: BuildSpec) -> str:
    """Return what two requests must share to be one build; new operations make a new build of an old blueprint."""
    parts = {"blueprint": blueprint_id, "op_library": OP_LIBRARY, **build.model_dump(mode="json")}
    return digest_of(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())


def job_of(row: CompileJobRow) -> CompileJob:
    """Return a claimed row as the forge sees it; its blueprint must be loaded."""
    return CompileJob(
        job_id=row.id,
        blueprint_id=row.blueprint_id,
        name=row.blueprint.name,
        architecture_ir=row.blueprint.architecture_ir,
        build=BuildSpec.model_validate(row.build),
        priority=row.priority,
        attempt=row.attempts,
        phase=row.phase,
        kernel_id=None if row.phase is JobPhase.BUILD else row.kernel_id,
    )


def kernel_row(artifact: CompiledKernelArtifact, size_bytes: int) -> Kernel:
    """Return the row of a new kernel, of which nothing was measured yet."""
    return Kernel(
        id=artifact.artifact_id,
        blueprint_id=artifact.blueprint_id,
        kernel_binary_ref=artifact.artifact_id,
        size_bytes=size_bytes,
        status=KernelStatus.PENDING_VALIDATION,
        compilation_time_ms=artifact.compilation_time_ms,
        target_device=artifact.target_device,
        optimization_level=artifact.optimization_level,
        compiler_version=artifact.metadata.get("compiler_version", "unknown"),
        validation_metrics={},
        benchmark_results={},
    )


def measure(kernel: Kernel, report: ValidationResult) -> None:
    """Write what a report measured into the row of its kernel."""
    metrics = all_metrics(report)
    params = metrics.get("params")
    kernel.validation_metrics = dict(metrics)
    kernel.benchmark_results = {} if report.performance is None else dict(_finite(report.performance.metrics))
    kernel.throughput, kernel.latency_ms = metrics.get("throughput_per_s"), metrics.get("latency_p50_ms")
    kernel.num_params = None if params is None else int(params)


def all_metrics(report: ValidationResult) -> dict[str, float]:
    """Return the metrics of every gate by name."""
    return {name: value for gate in report.gates for name, value in _finite(gate.metrics).items()}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out what JSON has no number for."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def kernel_contract(row: Kernel) -> CompiledKernelContract:
    """Return a kernel as the store describes it."""
    metrics = {name: value for name, value in row.validation_metrics.items() if isinstance(value, float | int)}
    flops = metrics.get("flops")
    return CompiledKernelContract(
        kernel_id=row.id,
        blueprint_id=row.blueprint_id,
        kernel_binary_ref=row.kernel_binary_ref,
        status=row.status,
        compilation_time=row.compilation_time_ms / 1_000,
        created_at=row.created_at,
        target_device=row.target_device,
        optimization_level=row.optimization_level,
        estimated_flops=None if flops is None else int(flops),
        memory_footprint_mb=row.size_bytes / _MIB,
        validation_metrics=metrics,
        safety_checks_passed=row.safety_checks_passed,
    )
