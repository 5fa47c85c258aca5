"""From a blueprint to the bytes of a kernel."""

import asyncio
import time

import torch

import esper
from esper.blueprints import OP_LIBRARY
from esper.blueprints.kernel import pack_kernel, unpack_kernel
from esper.blueprints.weights import initial_state
from esper.contracts.kernel import LEVELS, BuildSpec, CompiledKernelArtifact
from esper.errors import CompilationError, ConfigError
from esper.ir import BlueprintIR, digest_of
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.inference.levels import DEFAULT_BACKEND, climb, raised
from esper.services.tezzeret.screening import ForgeLimits, screen


class KernelCompiler:
    """Compiles blueprints.

    Args:
        limits: What one build may take.
        config: Thresholds of what levels add.
        backend: What level 3 makes inference forms with: ``onnx``, ``aotinductor`` or ``torchscript``.
    """

    def __init__(
        self,
        limits: ForgeLimits | None = None,
        config: ValidatorConfig | None = None,
        *,
        backend: str = DEFAULT_BACKEND,
    ) -> None:
        self._limits = limits or ForgeLimits()
        self._config = config or ValidatorConfig()
        self._backend = backend

    def compile(self, blueprint: BlueprintIR, build: BuildSpec | None = None) -> CompiledKernelArtifact:
        """Make the trainable artifact of a blueprint, and what the level of the build adds beside it.

        Args:
            blueprint: The design.
            build: Weight seed, number type and level.

        Returns:
            The artifact, not validated yet. It says which level was reached, and why no higher one.

        Raises:
            InvalidBlueprint: If it breaks law 2 or a cap.
            CompilationError: If it is too large for the forge.
        """
        build = build or BuildSpec()
        return self.lift(self.trainable(blueprint, build), build)

    def lift(
        self, artifact: CompiledKernelArtifact, build: BuildSpec, *, above: str = LEVELS[0]
    ) -> CompiledKernelArtifact:
        """Add what the level of a build asks for, to an artifact that `trainable` made.

        Args:
            artifact: The artifact.
            build: Its build.
            above: A level whose additions, and those of all below it, are there already.

        Returns:
            The artifact with the same bytes; it says which level was reached, and why no higher one.
        """
        if build.level <= above:
            return artifact
        began = time.perf_counter()
        done = climb(
            Trial(unpack_kernel(artifact.kernel_binary), self._config), build.level, above=above, backend=self._backend
        )
        took_ms = (time.perf_counter() - began) * 1e3
        lifted = raised(artifact, done)
        return lifted.model_copy(update={"compilation_time_ms": artifact.compilation_time_ms + took_ms})

    def trainable(self, blueprint: BlueprintIR, build: BuildSpec) -> CompiledKernelArtifact:
        """Make the trainable artifact of a blueprint alone: canonical IR and initial weights.

        Args:
            blueprint: The design.
            build: Weight seed and number type.

        Returns:
            The artifact, not validated yet. Equal arguments give equal bytes, in any process.

        Raises:
            InvalidBlueprint: If it breaks law 2 or a cap.
            CompilationError: If it is too large for the forge.
        """
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
            optimization_level=LEVELS[0],
            metadata=_metadata(ir, build),
        )

    async def compile_blueprint(self, blueprint: BlueprintIR, optimization_level: str = "O2") -> CompiledKernelArtifact:
        """Make the trainable artifact of a blueprint and what a level adds beside it, in a thread.

        Args:
            blueprint: The design.
            optimization_level: What is asked for; the artifact says which level it reached.

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
