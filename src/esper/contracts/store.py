"""What the artifact store is asked, and what it answers, beside blueprints and kernels themselves."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from esper.contracts.kernel import ArchitectureIR, BlueprintStatus, JsonObject, KernelStatus, Written

MAX_PAGE = 200
MAX_DESCENDANTS = 1000
MAX_TAGS = 16


class Match(StrEnum):
    """How many of several tags a kernel must have."""

    ANY = "any"
    ALL = "all"


class KernelQuery(Written):
    """Which kernels to list, fastest first; those that were not measured come last. Everything that is given must hold.

    Attributes:
        tags: Of the blueprint.
        match: Whether any of the tags will do, or all are needed.
        device: Device that it was built for, such as ``cpu``.
        min_performance: Least throughput in examples per second; leaves out what was not measured.
        max_latency_ms: Longest median latency; leaves out what was not measured.
        max_memory_mb: Largest artifact, in MiB.
        has_params: Whether there is anything to train in it.
        name: Words of the blueprint's name, each by its beginning: ``gat conv`` finds ``Gated Convolution``.
        limit: Length of a page.
        cursor: Where the page begins, as the page before it said.
    """

    tags: list[str] = Field(default_factory=list, max_length=MAX_TAGS)
    match: Match = Match.ANY
    status: KernelStatus | None = None
    device: str | None = Field(default=None, max_length=64)
    min_performance: float | None = Field(default=None, allow_inf_nan=False)
    max_latency_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_memory_mb: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    has_params: bool | None = None
    name: str | None = Field(default=None, max_length=128)
    blueprint_id: str | None = Field(default=None, max_length=71)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(default=None, max_length=512)


class KernelRecord(BaseModel):
    """A kernel with what its blueprint says of it.

    Attributes:
        name: Of its blueprint, with ``version``.
        throughput: Examples per second; None where it was not measured.
        num_params: None where it was not counted.
    """

    model_config = ConfigDict(frozen=True)

    kernel_id: str
    blueprint_id: str
    name: str
    version: int
    tags: list[str]
    status: KernelStatus
    target_device: str
    optimization_level: str
    compiler_version: str
    size_bytes: int
    compilation_time_ms: float
    throughput: float | None
    latency_ms: float | None
    num_params: int | None
    validation_passed: bool
    safety_checks_passed: bool
    validation_metrics: JsonObject
    benchmark_results: JsonObject
    created_at: datetime
    updated_at: datetime


class KernelPage(BaseModel):
    """A page of kernels; ``cursor`` begins the next one, and is None on the last."""

    kernels: list[KernelRecord]
    cursor: str | None = None


class BlueprintQuery(Written):
    """Which blueprints to list, by name and version. Everything that is given must hold; see `KernelQuery`."""

    tags: list[str] = Field(default_factory=list, max_length=MAX_TAGS)
    match: Match = Match.ANY
    status: BlueprintStatus | None = None
    name: str | None = Field(default=None, max_length=128)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(default=None, max_length=1024)


class BlueprintRecord(BaseModel):
    """A blueprint as it is stored."""

    model_config = ConfigDict(frozen=True)

    blueprint_id: str
    name: str
    version: int
    status: BlueprintStatus
    tags: list[str]
    parent_id: str | None
    submitted_by: str
    metadata: JsonObject
    architecture_ir: ArchitectureIR
    created_at: datetime
    updated_at: datetime


class BlueprintPage(BaseModel):
    """A page of blueprints; ``cursor`` begins the next one, and is None on the last."""

    blueprints: list[BlueprintRecord]
    cursor: str | None = None


class LineageEntry(BaseModel):
    """One blueprint of a line.

    Attributes:
        blueprint_id: Content address of the blueprint.
        name: Its name.
        version: Its version under that name.
        created_at: When it was first stored, in UTC.
        tags: Its tags, in alphabetical order.
        parent_id: The blueprint that it was made from.
        depth: Steps from the one that was asked about.
    """

    model_config = ConfigDict(frozen=True)

    blueprint_id: str
    name: str
    version: int
    created_at: datetime
    tags: tuple[str, ...]
    parent_id: str | None
    depth: int


class OutcomeStatistics(BaseModel):
    """What grafts of a kernel or a blueprint brought.

    Attributes:
        kept: How many were kept.
        culled: How many were culled.
        rolled_back: How many were taken back.
        cancelled: How many were withdrawn before they joined.
        mean_gain: Mean of the gains that were measured, or None where none was.
        measured: Over how many.
    """

    model_config = ConfigDict(frozen=True)

    kept: int = 0
    culled: int = 0
    rolled_back: int = 0
    cancelled: int = 0
    mean_gain: float | None = None
    measured: int = 0


class AuditRecord(BaseModel):
    """One write, as it is told."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: JsonObject


class Health(BaseModel):
    """Whether the process answers."""

    status: str = "ok"


class Status(BaseModel):
    """How the service is.

    Attributes:
        waiting: Announcements that wait for the bus.
        cached_bytes: Memory that answers take which cannot change.
    """

    version: str
    database: str
    draining: bool
    waiting: int
    cached_bytes: int
