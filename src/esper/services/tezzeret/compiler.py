"""From a blueprint to the bytes of a kernel."""

import asyncio
import time

import torch

import esper
from esper.blueprints import OP_LIBRARY
from esper.blueprints.kernel import pack_kernel
from esper.blueprints.weights import initial_state
from esper.contracts.kernel import BuildSpec, CompiledKernelArtifact
from esper.errors import CompilationError, ConfigError
from esper.ir import BlueprintIR, digest_of
from esper.services.tezzeret.screening import ForgeLimits, screen

LEVELS = ("O0", "O1", "O2", "O3")
REACHED_LEVEL = "O0"
"""Trainable artifacts have the same bytes at every level; what higher levels add beside them is not made yet."""


class KernelCompiler:
    """Compiles blueprints.

    Args:
        limits: What one build may take.
    """

    def __init__(self, limits: ForgeLimits | None = None) -> None:
        self._limits = limits or ForgeLimits()

    def compile(self, blueprint: BlueprintIR, build: BuildSpec | None = None) -> CompiledKernelArtifact:
        """Make the trainable artifact of a blueprint: canonical IR and initial weights.

        Args:
            blueprint: The design.
            build: Weight seed and number type.

        Returns:
            The artifact, not validated yet. Equal arguments give equal bytes, in any process.

        Raises:
            InvalidBlueprint: If it breaks law 2 or a cap.
            CompilationError: If it is too large for the forge.
        """
        build = build or BuildSpec()
        began = time.perf_counter()
        ir = screen(blueprint.to_json(), self._limits)
        state = initial_state(ir, seed=build.weight_seed, dtype=build.dtype)
        data = pack_kernel(ir, state, seed=build.weight_seed)
        return CompiledKernelArtifact(
            artifact_id=digest_of(data),
            blueprint_id=ir.digest,
            kernel_binary=data,
            compilation_time_ms=(time.perf_counter() - began) * 1e3,
            target_device="cpu",
            optimization_level=REACHED_LEVEL,
            metadata=_metadata(ir, build),
        )

    async def compile_blueprint(self, blueprint: BlueprintIR, optimization_level: str = "O2") -> CompiledKernelArtifact:
        """Make the trainable artifact of a blueprint, in a thread.

        Args:
            blueprint: The design.
            optimization_level: What is asked for; the artifact says which level it has.

        Raises:
            ConfigError: If there is no such level.
            InvalidBlueprint: If it breaks law 2 or a cap.
            CompilationError: If it is too large for the forge.
        """
        if optimization_level not in LEVELS:
            raise ConfigError(f"there is no level {optimization_level!r}", todo=f"choose one of {', '.join(LEVELS)}")
        return await asyncio.to_thread(self.compile, blueprint, BuildSpec(level=optimization_level))


def _metadata(ir: BlueprintIR, build: BuildSpec) -> dict[str, str]:
    return {
        "compiler": "esper.tezzeret",
        "compiler_version": esper.__version__,
        "torch_version": str(torch.__version__),
        "op_library": str(OP_LIBRARY),
        "dtype": build.dtype,
        "weight_seed": str(build.weight_seed),
        "requested_level": build.level,
        "trusted": "true" if ir.is_trusted else "false",
    }


RealKernelCompiler = KernelCompiler

__all__ = ["CompilationError", "KernelCompiler", "RealKernelCompiler"]
