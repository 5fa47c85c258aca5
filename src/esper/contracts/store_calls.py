"""What the artifact store is sent over HTTP, beside blueprints and queries."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError

from esper.contracts.kernel import (
    BlueprintContract,
    BlueprintStatus,
    CompiledKernelArtifact,
    InferenceArtifact,
    InferenceForm,
    KernelStatus,
    Measurement,
    ValidationResult,
    Written,
)
from esper.errors import ContractError

MAX_LEASE_S = 3600.0
MAX_LINK_S = 3600.0
MAX_REASON = 4000
"""Letters of a reason that are kept."""


@contextmanager
def stated() -> Iterator[None]:
    """Say what is wrong with the arguments of a call in the way of every other error.

    Raises:
        ContractError: If a body was made of what no store takes.
    """
    try:
        yield
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise ContractError("the store cannot be asked this", why=f"{place}: {wrong['msg']}") from error
    except PydanticSerializationError as error:
        raise ContractError("the store cannot be sent this", why=str(error)[:200]) from error


def check_part(start: int, stop: int | None, size_bytes: int | None = None) -> bool:
    """Say whether less than the whole is asked for.

    Args:
        start: The first byte.
        stop: The one after the last; the end where none is said.
        size_bytes: How many there are, where that is known.

    Raises:
        ContractError: If the part would have no byte.
    """
    if start == 0 and stop is None:
        return False
    ends = [end for end in (stop, size_bytes) if end is not None]
    if start < 0 or any(end <= start for end in ends):
        has = "" if size_bytes is None else f"; there are {size_bytes}"
        raise ContractError(
            "the bytes have no such part", why=f"it would go from {start} to {stop}{has}", code="ESP-3415"
        )
    return True


class Body(Written):
    """A body; a name or a reason has a bounded length."""


class KernelSummary(BaseModel):
    """A kernel as a search shows it.

    Attributes:
        performance: Throughput in examples per second; None where it was not measured.
        device: Device that it was built for.
    """

    model_config = ConfigDict(frozen=True)

    kernel_id: str
    blueprint_id: str
    tags: list[str]
    performance: float | None
    device: str


class BlueprintPut(Body):
    """Store a blueprint without queueing a build; the address names its design."""

    blueprint: BlueprintContract
    parent_id: str | None = Field(default=None, max_length=71)


class Held(Body):
    """Speak for the job that a worker holds."""

    worker: str = Field(min_length=1, max_length=128)


class Claim(Held):
    """Take the most urgent job.

    Attributes:
        finishing: Whether a job that finishes a kernel will do.
    """

    lease_s: float = Field(gt=0, le=MAX_LEASE_S, allow_inf_nan=False)
    finishing: bool = True


class Review(Held):
    """Take the most used kernel that was not looked at on some hardware.

    Attributes:
        hardware: As its measurements would name it.
    """

    hardware: str = Field(min_length=1, max_length=64)
    lease_s: float = Field(gt=0, le=MAX_LEASE_S, allow_inf_nan=False)


class Renewal(Held):
    """Keep a job that takes long."""

    lease_s: float = Field(gt=0, le=MAX_LEASE_S, allow_inf_nan=False)


class FormHead(Body):
    """An inference form without its bytes, which were uploaded under their content address."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    form: InferenceForm
    seal: bytes = Field(max_length=32 * 1024)

    @classmethod
    def of(cls, made: InferenceArtifact) -> "FormHead":
        """Return the head of a form."""
        return cls(form=made.form, seal=made.seal)

    def artifact(self) -> InferenceArtifact:
        """Return the form with its bytes left empty."""
        return InferenceArtifact(form=self.form, data=b"", seal=self.seal)


class ArtifactHead(Body):
    """What the forge made, without its bytes, which were uploaded under their content address."""

    artifact_id: str = Field(max_length=71)
    blueprint_id: str = Field(max_length=71)
    compilation_time_ms: float = Field(ge=0, allow_inf_nan=False)
    target_device: str = Field(max_length=64)
    optimization_level: str = Field(max_length=8)
    metadata: dict[str, str] = Field(default_factory=dict, max_length=64)
    forms: tuple[FormHead, ...] = Field(default=(), max_length=16)

    @classmethod
    def of(cls, artifact: CompiledKernelArtifact) -> "ArtifactHead":
        """Return the head of an artifact."""
        told = artifact.model_dump(exclude={"kernel_binary", "inference"})
        return cls(**told, forms=tuple(map(FormHead.of, artifact.inference)))

    def artifact(self) -> CompiledKernelArtifact:
        """Return the artifact with its bytes left empty."""
        inference = tuple(head.artifact() for head in self.forms)
        return CompiledKernelArtifact(kernel_binary=b"", inference=inference, **self.model_dump(exclude={"forms"}))


class Completion(Held):
    """Store a kernel with its report, and end the job."""

    artifact: ArtifactHead
    report: ValidationResult


class Finish(Held):
    """Add to a kernel what its level adds, whose bytes were uploaded before, and end the job."""

    forms: tuple[FormHead, ...] = Field(max_length=16)
    performance: Measurement | None = None
    shortfall: str = Field(default="", max_length=MAX_REASON)
    report: ValidationResult | None = None


class Failure(Held):
    """Give a job up."""

    reason: str = Field(max_length=MAX_REASON)
    retry: bool
    killed: bool = False


class Became(BaseModel):
    """What became of a blueprint."""

    status: BlueprintStatus


class KernelStatusChange(Body):
    """Give a kernel another status."""

    status: KernelStatus


class BlueprintStatusChange(Body):
    """Give a blueprint another status."""

    status: BlueprintStatus


class Stored(BaseModel):
    """Bytes that are stored."""

    digest: str
    size_bytes: int


class Link(BaseModel):
    """An address of bytes that needs no key, or None where they have no such."""

    url: str | None
