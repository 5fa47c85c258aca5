"""Contracts between services, under the names that the specification gives them; they live in `esper.contracts`."""

from esper.contracts.health import HealthSignal
from esper.contracts.kernel import (
    BlueprintContract,
    BlueprintStatus,
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    CompiledKernelContract,
    KernelExecutionRequest,
    KernelStatus,
)

SimpleBlueprintContract = BlueprintContract
SimpleCompiledKernelContract = CompiledKernelContract

__all__ = [
    "BlueprintContract",
    "BlueprintStatus",
    "BlueprintSubmissionRequest",
    "BlueprintSubmissionResponse",
    "CompiledKernelContract",
    "HealthSignal",
    "KernelExecutionRequest",
    "KernelStatus",
    "SimpleBlueprintContract",
    "SimpleCompiledKernelContract",
]
