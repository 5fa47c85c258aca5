"""One validation of a kernel, on its stored bytes."""

import asyncio

import torch

from esper.blueprints.kernel import Kernel, unpack_kernel
from esper.contracts.kernel import CompiledKernelArtifact, Measurement, ValidationResult
from esper.errors import EsperError, KernelRejected
from esper.ir import BlueprintIR, digest_of
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.gates.correctness import correctness
from esper.services.tezzeret.gates.performance import performance
from esper.services.tezzeret.gates.safety import safety
from esper.services.tezzeret.gates.stability import stability
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.gates.verdict import passed_through
from esper.services.tezzeret.hardware import hardware


class KernelValidator:
    """Validates kernels.

    Args:
        config: Thresholds.
    """

    def __init__(self, config: ValidatorConfig | None = None) -> None:
        self._config = config or ValidatorConfig()

    def validate(
        self, kernel: CompiledKernelArtifact, blueprint: BlueprintIR, *, measured: bool = True
    ) -> ValidationResult:
        """Unpack a kernel's bytes, and pass it through every gate.

        Args:
            kernel: The artifact; only its bytes are believed.
            blueprint: What it must be a kernel of.
            measured: Whether it is timed too; `measure` does that later where it is not.

        Returns:
            One result per gate, with reasons and measurements. A kernel that raises fails its gate.

        Raises:
            KernelRejected: If the bytes are not a sound kernel of that blueprint.
            OutOfMemory: If memory ran out.
        """
        trial = Trial(_unpacked(kernel, blueprint), self._config)
        return ValidationResult(
            kernel_id=kernel.artifact_id,
            correctness=passed_through(correctness, trial),
            performance=_measured(trial) if measured else None,
            safety=passed_through(safety, trial),
            stability=passed_through(stability, trial),
        )

    def measure(self, kernel: CompiledKernelArtifact, blueprint: BlueprintIR) -> Measurement:
        """Time a kernel that was validated before, and train it for a while.

        Raises:
            KernelRejected: If the bytes are not a sound kernel of that blueprint.
            OutOfMemory: If memory ran out.
        """
        return _measured(Trial(_unpacked(kernel, blueprint), self._config))

    async def validate_kernel(self, kernel: CompiledKernelArtifact, blueprint: BlueprintIR) -> ValidationResult:
        """Unpack a kernel's bytes, and pass it through every gate, in a thread.

        Args:
            kernel: The artifact; only its bytes are believed.
            blueprint: What it must be a kernel of.

        Raises:
            KernelRejected: If the bytes are not a sound kernel of that blueprint.
        """
        return await asyncio.to_thread(self.validate, kernel, blueprint)


def _measured(trial: Trial) -> Measurement:
    return Measurement(hardware=hardware(torch.get_num_threads()), **dict(passed_through(performance, trial)))


def _unpacked(artifact: CompiledKernelArtifact, blueprint: BlueprintIR) -> Kernel:
    digest = digest_of(artifact.kernel_binary)
    if digest != artifact.artifact_id:
        raise _rejected(artifact, f"its bytes have the digest {digest[:19]}")
    try:
        kernel = unpack_kernel(artifact.kernel_binary)
    except EsperError as wrong:
        raise _rejected(artifact, str(wrong)) from wrong
    if not kernel.ir.digest == blueprint.digest == artifact.blueprint_id:
        raise _rejected(artifact, f"its bytes hold the blueprint {kernel.ir.digest[:19]}, not {blueprint.digest[:19]}")
    return kernel


def _rejected(artifact: CompiledKernelArtifact, why: str) -> KernelRejected:
    return KernelRejected(f"kernel {artifact.artifact_id[:19]} was not validated", why=why, todo="compile it again")


__all__ = ["KernelValidator"]
