"""What the forge and its children say to each other, as msgspec structs."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
from msgspec.msgpack import Decoder

from esper.contracts.kernel import (
    PUBLISHED_LEVEL,
    BuildSpec,
    CompiledKernelArtifact,
    CompileJob,
    InferenceArtifact,
    InferenceForm,
    JobPhase,
    Measurement,
    ValidationResult,
)
from esper.errors import CompilationError, EsperError

CHILD_MODULE = "esper.services.tezzeret.child"

Compiled: TypeAlias = Literal["onnx", "aotinductor", "torchscript"]
"""Backends of level 3."""

MACHINE_CODE = "aotinductor"
"""The one that needs a compiler, and a folder to write in."""


class ChildSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a child is to work; it travels as JSON in the command line.

    Attributes:
        extensions: Modules with custom operations to import.
        memory_limit_mb: Address space that jobs may use on top of what the interpreter and torch take.
        deadline_s: Processor time of one job, in seconds, after which the kernel ends the child whatever the parent does.
        fork_per_job: Whether each job gets a process of its own.
        nice: How much the system prefers other processes, from 0 to 19.
        backend: What level 3 makes inference forms with.
        scratch: Folder that jobs may write in, or nothing.
        scratch_mb: Size of one file there.
    """

    extensions: tuple[str, ...] = ()
    memory_limit_mb: int
    deadline_s: float
    fork_per_job: bool = False
    nice: int = 0
    backend: Compiled = "onnx"
    scratch: str = ""
    scratch_mb: int = 0


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A child's greeting.

    Attributes:
        trouble: Why it cannot work, or nothing.
        base_mb: Address space that it takes before any job.
        isolated: Whether it is in a network of its own, in which nothing can be reached.
        confined: Whether it can write nowhere but in its scratch folder.
    """

    trouble: str = ""
    base_mb: int = 0
    isolated: bool = False
    confined: bool = False


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """One build.

    Attributes:
        blueprint_id: Content address that the architecture must have.
        architecture_ir: Its JSON.
        build: The build, as JSON.
        kernel_id: The kernel that this build gave before, where only what its level adds is wanted; None where it is to be
            built and proven.
        again: Whether that kernel is to be proven again.
    """

    blueprint_id: str
    architecture_ir: bytes
    build: bytes
    kernel_id: str | None = None
    again: bool = False


class Execution(msgspec.Struct, frozen=True, kw_only=True, tag="execution"):
    """One run of a kernel.

    Attributes:
        kernel_id: Digest that the bytes of the kernel must have.
        kernel: Its bytes.
        shape: Shape of the input.
        seed: Of the input.
        form: The form that is to run, as JSON; None for the kernel as it is trained.
        data: Bytes of the form.
        seal: Its seal; the child verifies it before it parses a byte.
        ring: Keys that are trusted, as JSON.
    """

    kernel_id: str
    kernel: bytes
    shape: tuple[int, ...]
    seed: int = 0
    form: bytes | None = None
    data: bytes = b""
    seal: bytes = b""
    ring: bytes = b"[]"


class Executed(msgspec.Struct, frozen=True, tag="executed"):
    """What a run came to; see `esper.contracts.kernel.KernelExecutionResult`."""

    shape: tuple[int, ...]
    latency_ms: float
    runs: int
    memory_mb: float | None


class Forged(msgspec.Struct, frozen=True, kw_only=True, tag="forged"):
    """A kernel, and what validation found on its bytes.

    Attributes:
        kernel: The bytes.
        artifact: The rest of the artifact, as JSON.
        report: The report, as JSON.
        forms: Inference forms, as JSON, each with its bytes.
    """

    kernel: bytes
    artifact: bytes
    report: bytes
    forms: tuple[tuple[bytes, bytes], ...] = ()


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """What was measured of a kernel that was proven before, and what a level adds to it.

    Attributes:
        forms: Inference forms, as JSON, each with its bytes.
        performance: What was measured of the kernel, as JSON.
        shortfall: Why there is not more.
        report: What was found where it was proven again, as JSON; empty where it was not.
    """

    forms: tuple[tuple[bytes, bytes], ...]
    performance: bytes
    shortfall: str
    report: bytes = b""


@dataclass(frozen=True)
class Additions:
    """The same, read.

    Attributes:
        forms: Inference forms.
        performance: What was measured of the kernel.
        shortfall: Why there is not more.
        report: What was found where the kernel was proven again.
    """

    forms: tuple[InferenceArtifact, ...]
    performance: Measurement
    shortfall: str
    report: ValidationResult | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Why there is no kernel; trying again would not help."""

    what: str
    why: str = ""
    todo: str = ""
    code: str = CompilationError.default_code


class Exhausted(msgspec.Struct, frozen=True, kw_only=True, tag="exhausted"):
    """The job ran out of memory; the child ends after this."""

    why: str


class Died(msgspec.Struct, frozen=True, kw_only=True, tag="died"):
    """The process of the job died; the one that had forked it goes on."""

    how: str


Reply: TypeAlias = Forged | Finished | Executed | Refused | Exhausted | Died

READY: Decoder[Ready] = Decoder(Ready)
ORDERS: Decoder[Order | Execution] = Decoder(Order | Execution)
REPLIES: Decoder[Reply] = Decoder(Reply)


def order_of(job: CompileJob, highest_level: str) -> Order:
    """Return a job as a child gets it, its level lowered to the highest one that is made in its phase."""
    highest = min(highest_level, PUBLISHED_LEVEL) if job.phase is JobPhase.BUILD else highest_level
    build = job.build.model_copy(update={"level": min(job.build.level, highest)})
    return Order(
        blueprint_id=job.blueprint_id,
        architecture_ir=msgspec.json.encode(job.architecture_ir),
        build=build.model_dump_json().encode(),
        kernel_id=job.kernel_id,
        again=job.phase is JobPhase.REVIEW,
    )


def build_of(order: Order) -> BuildSpec:
    """Return the build that an order asks for."""
    return BuildSpec.model_validate_json(order.build)


def forged(artifact: CompiledKernelArtifact, report: ValidationResult) -> Forged:
    """Return a finished build as the parent gets it."""
    return Forged(
        kernel=artifact.kernel_binary,
        artifact=artifact.model_dump_json(exclude={"kernel_binary", "inference"}).encode(),
        report=report.model_dump_json().encode(),
        forms=_packed(artifact.inference),
    )


def finished(added: Additions) -> Finished:
    """Return what a level added as the parent gets it."""
    performance = added.performance.model_dump_json().encode()
    report = b"" if added.report is None else added.report.model_dump_json().encode()
    return Finished(forms=_packed(added.forms), performance=performance, shortfall=added.shortfall, report=report)


def read_additions(reply: Finished) -> Additions:
    """Return what a level added."""
    report = ValidationResult.model_validate_json(reply.report) if reply.report else None
    performance = Measurement.model_validate_json(reply.performance)
    return Additions(_unpacked(reply.forms), performance, reply.shortfall, report)


def read_kernel(reply: Forged) -> tuple[CompiledKernelArtifact, ValidationResult]:
    """Return the artifact and the report of a finished build."""
    fields = msgspec.json.decode(reply.artifact, type=dict[str, object])
    inference = _unpacked(reply.forms)
    artifact = CompiledKernelArtifact.model_validate({**fields, "kernel_binary": reply.kernel, "inference": inference})
    return artifact, ValidationResult.model_validate_json(reply.report)


def _packed(forms: tuple[InferenceArtifact, ...]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((made.form.model_dump_json().encode(), made.data) for made in forms)


def _unpacked(forms: tuple[tuple[bytes, bytes], ...]) -> tuple[InferenceArtifact, ...]:
    return tuple(
        InferenceArtifact(form=InferenceForm.model_validate_json(form), data=data) for form, data in forms
    )  # fmt: skip


def refused(error: EsperError) -> Refused:
    """Return a refusal as the parent gets it."""
    return Refused(what=error.what, why=error.why, todo=error.todo, code=error.code)


def refusal(reply: Refused) -> CompilationError:
    """Return a refusal as the error that it was."""
    return CompilationError(reply.what, why=reply.why, todo=reply.todo, code=reply.code)
