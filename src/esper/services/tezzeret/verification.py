"""A kernel that somebody has, proven again."""

from esper.blueprints import unpack_kernel
from esper.contracts.kernel import CompiledKernelArtifact, ValidationResult
from esper.errors import KernelRejected
from esper.ir import digest_of
from esper.services.tezzeret.validator import KernelValidator


def verified(kernel_id: str, data: bytes) -> ValidationResult:
    """Pass bytes through every gate, in this process.

    Args:
        kernel_id: Content address that they must have.
        data: The bytes of a kernel.

    Raises:
        KernelRejected: If they have another digest, or are no sound kernel.
        InvalidBlueprint: If the design in them breaks a rule, such as an operation that is not installed here.
    """
    found = digest_of(data)
    if found != kernel_id:
        raise KernelRejected(f"kernel {kernel_id[:80]} is not what it says", why=f"its bytes have the digest {found}")
    ir = unpack_kernel(data).ir
    artifact = CompiledKernelArtifact(
        artifact_id=kernel_id, blueprint_id=ir.digest, kernel_binary=data, compilation_time_ms=0.0,
        target_device="cpu", optimization_level="O0",
    )  # fmt: skip
    return KernelValidator().validate(artifact, ir)
