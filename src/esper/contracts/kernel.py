"""Blueprints and kernels as they travel between forge, store and trainer."""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

JsonObject: TypeAlias = dict[str, JsonValue]


MOST_TAGS = 64
"""Tags that a design is given at once; what a search needs of them grows with their square."""


class BlueprintStatus(StrEnum):
    """How far a blueprint has come."""

    UNVALIDATED = "unvalidated"
    COMPILING = "compiling"
    VALIDATED = "validated"
    DEPLOYED = "deployed"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"


class KernelStatus(StrEnum):
    """Whether a kernel may be grafted; only ``VALIDATED`` may."""

    PENDING_VALIDATION = "pending_validation"
    VALIDATED = "validated"
    REJECTED = "rejected"
    RETIRED = "retired"


def _parsed_once(value: object) -> object:
    """Accept the JSON text of an object where the object itself is expected."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_unrepeated)
    except RecursionError as deep:
        raise ValueError("it is nested too deeply") from deep


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is there twice, and which one counts is unclear")
    return fields


ArchitectureIR = Annotated[JsonObject, BeforeValidator(_parsed_once)]


class Written(BaseModel):
    """A record that we write: unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BuildSpec(Written):
    """How a blueprint is to be built.

    Attributes:
        weight_seed: Seed of the initial weights.
        dtype: Type of the stored weights; a host of another type casts them when they are loaded.
        level: Optimization level, ``O0`` to ``O3``.
    """

    weight_seed: int = Field(default=0, ge=0, lt=2**63)
    dtype: str = Field(default="float32", pattern="^(float32|float64|bfloat16|float16)$")
    level: str = Field(default="O0", pattern="^O[0-3]$")


class BlueprintSubmissionRequest(Written):
    """Ask for a blueprint to be stored, compiled and validated."""

    name: str = Field(min_length=1, max_length=128)
    architecture_ir: ArchitectureIR
    submitted_by: str = "system"
    tags: list[str] = Field(default_factory=list, max_length=MOST_TAGS)
    priority: int = Field(default=5, ge=1, le=10)
    build: BuildSpec = BuildSpec()


class BlueprintSubmissionResponse(BaseModel):
    """What became of a submission."""

    blueprint_id: str
    status: str
    message: str
    estimated_compilation_time_s: float | None = None
    queue_position: int | None = None


class KernelExecutionRequest(Written):
    """Ask for one run of a kernel on generated input."""

    kernel_id: str
    input_tensor_shape: list[int] = Field(min_length=1, max_length=8)
    execution_context: JsonObject = Field(default_factory=dict)


class KernelExecutionResult(BaseModel):
    """What one run of a kernel on generated input came to.

    Attributes:
        backend: What ran: ``kernel`` for the kernel as it is trained, or that of a form.
        output_tensor_shape: Shape of what came out.
        latency_ms: Median time of a run after the first, on one thread.
        runs: Runs that were timed.
        memory_mb: How far the process grew while it ran; None where the system does not tell.
    """

    kernel_id: str
    backend: str
    output_tensor_shape: list[int]
    latency_ms: float
    runs: int
    memory_mb: float | None


class BlueprintContract(BaseModel):
    """A blueprint as the store describes it."""

    blueprint_id: str
    name: str
    architecture_ir: ArchitectureIR
    status: BlueprintStatus = BlueprintStatus.UNVALIDATED
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    tags: list[str] = Field(default_factory=list)
    metadata: JsonObject = Field(default_factory=dict)
    version: int = 1
    parent_id: str | None = None


class CompiledKernelContract(BaseModel):
    """A kernel as the store describes it; nothing counts as validated before its report is stored."""

    kernel_id: str
    blueprint_id: str
    kernel_binary_ref: str
    status: KernelStatus = KernelStatus.PENDING_VALIDATION
    compilation_time: float = 0.0
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    target_device: str = "cpu"
    optimization_level: str = "O2"
    estimated_flops: int | None = None
    memory_footprint_mb: float | None = None
    validation_metrics: dict[str, float] = Field(default_factory=dict)
    safety_checks_passed: bool = False


class Certificate(Written):
    """Proof that a kernel can be traced whole, for any batch and any extent.

    Attributes:
        exporter: What traced it, with its version.
        modes: ``train`` and ``eval``.
        dynamic_axes: Axes of the input that may have any size.
        operators: Operator calls of the traced graph.
        max_error: Largest difference of values and gradients to the eager kernel, relative to the largest of them.
        took_ms: Time of tracing and comparing.
    """

    exporter: str
    modes: tuple[str, ...]
    dynamic_axes: tuple[int, ...]
    operators: int
    max_error: float
    took_ms: float


LEVELS = ("O0", "O1", "O2", "O3")
"""What a blueprint may be built to; each level adds to what the ones before it made."""

PUBLISHED_LEVEL = LEVELS[1]
"""As soon as a kernel has this level it is handed out; what higher ones add follows in a job of its own."""

CERTIFICATE = "certificate"
"""Backend of the form that holds a `Certificate`, as JSON."""


class InferenceForm(Written):
    """What a level added to a kernel: its certificate, or a program for those who only run it.

    Attributes:
        level: ``O1`` to ``O3``.
        backend: ``certificate``, ``eager``, ``onnx``, ``aotinductor`` or ``torchscript``.
        device: Device that it runs on: ``cpu``; for machine code with the model of the processor, whose instructions it uses.
        torch: The torch that made it.
        digest: Content address of its bytes.
        size_bytes: Their number.
        carries_code: Whether loading it may run code.
        merged: What fusion merged into what.
        max_error: Largest difference to the reference in float64, relative to the largest value.
        made_ms: Time of making it.
        load_ms: Time of loading it; None where nothing is loaded.
        latency_p50_ms: One pass of eight small examples on one thread; None where nothing runs.
        eager_p50_ms: The same of the kernel as it is trained, measured in turns with it.
    """

    level: str = Field(pattern="^O[1-3]$")
    backend: str = Field(min_length=1, max_length=32)
    device: str = Field(default="cpu", max_length=64)
    torch: str = Field(max_length=64)
    digest: str = Field(max_length=71)
    size_bytes: int = Field(ge=0, lt=2**63)
    carries_code: bool
    merged: tuple[str, ...] = ()
    max_error: float = Field(allow_inf_nan=False)
    made_ms: float = Field(ge=0, allow_inf_nan=False)
    load_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    latency_p50_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    eager_p50_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class InferenceArtifact(Written):
    """An inference form with its bytes, and with the seal of the forge that made them; empty until it has sealed them."""

    form: InferenceForm
    data: bytes
    seal: bytes = b""


class KernelForm(BaseModel):
    """An inference form as the store keeps it.

    Attributes:
        kernel_id: The kernel.
        blueprint_id: Its blueprint.
        form: What it is.
        seal: What the forge signed; in base64 as JSON, and empty for a certificate that nobody signed.
        created_at: When it was stored.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    kernel_id: str
    blueprint_id: str
    form: InferenceForm
    seal: bytes
    created_at: datetime


class CompiledKernelArtifact(BaseModel):
    """What the forge made of a blueprint.

    Attributes:
        artifact_id: Content address of ``kernel_binary``.
        kernel_binary: Canonical IR and weights in one safetensors blob; the same at every level.
        optimization_level: The level that was reached.
        metadata: How it was made; ``shortfall`` says why a level that was asked for was not reached.
        inference: What the levels made beside it.
    """

    model_config = ConfigDict(frozen=True)

    artifact_id: str
    blueprint_id: str
    kernel_binary: bytes
    compilation_time_ms: float
    target_device: str
    optimization_level: str
    metadata: dict[str, str] = Field(default_factory=dict)
    inference: tuple[InferenceArtifact, ...] = ()

    @property
    def certificate(self) -> Certificate | None:
        """What level 1 proved."""
        for made in self.inference:
            if made.form.backend == CERTIFICATE:
                return Certificate.model_validate_json(made.data)
        return None


class JobPhase(StrEnum):
    """What a job is about.

    Attributes:
        BUILD: A kernel is to be made and proven; once that is stored, it may be grafted.
        FINISH: A kernel that is there is to be measured, and to get what its level adds; nobody waits for that.
        REVIEW: A kernel that is used is to be proven again, and finished, with the toolchain of today.
    """

    BUILD = "build"
    FINISH = "finish"
    REVIEW = "review"


class CompileJob(BaseModel):
    """One leased piece of work for the forge.

    Attributes:
        kernel_id: The kernel that is to be finished or reviewed; None where it is still to be built.
    """

    job_id: str
    blueprint_id: str
    name: str
    architecture_ir: JsonObject
    build: BuildSpec
    priority: int
    attempt: int
    phase: JobPhase = JobPhase.BUILD
    kernel_id: str | None = None


class GateResult(Written):
    """One gate of a validation: whether it let the kernel pass, and what was measured."""

    passed: bool
    metrics: dict[str, float] = Field(default_factory=dict)
    reasons: tuple[str, ...] = ()


class Measurement(GateResult):
    """The gate of performance: what was measured, and on what.

    Attributes:
        hardware: Processor, instruction set and torch; measurements with equal ones may be compared.
    """

    hardware: str = Field(default="", max_length=64)


class ValidationResult(Written):
    """What the validator found, on the stored bytes.

    Attributes:
        performance: None until a job of its own has measured the kernel, which is proven and may be grafted before that.
    """

    kernel_id: str
    correctness: GateResult
    performance: Measurement | None
    safety: GateResult
    stability: GateResult

    @property
    def passed(self) -> bool:
        """Whether every gate that was tried let the kernel pass."""
        return all(gate.passed for gate in self.gates)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every reason for which a gate stayed shut."""
        return tuple(reason for gate in self.gates for reason in gate.reasons)

    @property
    def gates(self) -> tuple[GateResult, ...]:
        """The gates that were tried."""
        proven = (self.correctness, self.safety, self.stability)
        return proven if self.performance is None else (*proven, self.performance)
