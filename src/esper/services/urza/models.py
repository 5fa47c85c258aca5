"""Tables of the artifact store."""

from datetime import UTC, datetime
from enum import StrEnum

from pydantic import JsonValue
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from esper.contracts.kernel import BlueprintStatus, JsonObject, KernelStatus

_DIGEST = String(71)  # "sha256:" and 64 hex digits
_NAME = String(128)


class Utc(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store the moment in UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment with its zone."""
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _words(kind: type[StrEnum]) -> Enum:
    """Store the values of an enum as text; a new member needs no migration."""
    return Enum(
        kind, native_enum=False, create_constraint=False, length=32, values_callable=lambda of: [m.value for m in of]
    )


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Parent of every table."""

    type_annotation_map = {datetime: Utc}  # noqa: RUF012


class JobStatus(StrEnum):
    """How far the forge is with a build."""

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    REJECTED = "rejected"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class Blueprint(Base):
    """A design; its id is the digest of its canonical form."""

    __tablename__ = "blueprints"
    __table_args__ = (UniqueConstraint("name", "version", name="uq_blueprints_name_version"),)

    id: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    name: Mapped[str] = mapped_column(_NAME)
    architecture_ir: Mapped[JsonObject] = mapped_column(JSON)
    status: Mapped[BlueprintStatus] = mapped_column(_words(BlueprintStatus), default=BlueprintStatus.UNVALIDATED)
    version: Mapped[int] = mapped_column(Integer, default=1)
    parent_id: Mapped[str | None] = mapped_column(_DIGEST, ForeignKey("blueprints.id"), index=True)
    submitted_by: Mapped[str] = mapped_column(_NAME, default="system")
    details: Mapped[JsonObject] = mapped_column("metadata", JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(default=_now)
    updated_at: Mapped[datetime] = mapped_column(default=_now, onupdate=_now)
    estimated_flops: Mapped[int | None] = mapped_column(BigInteger)
    memory_footprint_mb: Mapped[float | None]

    kernels: Mapped[list["Kernel"]] = relationship(back_populates="blueprint")
    parent: Mapped["Blueprint | None"] = relationship(remote_side=[id], back_populates="children")
    children: Mapped[list["Blueprint"]] = relationship(back_populates="parent")
    tag_rows: Mapped[list["BlueprintTag"]] = relationship(cascade="all, delete-orphan")

    @property
    def tags(self) -> list[str]:
        """Its tags, in alphabetical order."""
        return sorted(row.tag for row in self.tag_rows)


class BlueprintTag(Base):
    """One tag of one blueprint."""

    __tablename__ = "blueprint_tags"
    __table_args__ = (Index("ix_blueprint_tags_tag", "tag", "blueprint_id"),)

    blueprint_id: Mapped[str] = mapped_column(
        _DIGEST, ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(_NAME, primary_key=True)


class Kernel(Base):
    """A compiled blueprint; its id is the digest of its bytes. It may be grafted once its status is VALIDATED."""

    __tablename__ = "kernels"
    __table_args__ = (Index("ix_kernels_status_throughput", "status", "throughput"),)

    id: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    blueprint_id: Mapped[str] = mapped_column(_DIGEST, ForeignKey("blueprints.id"), index=True)
    kernel_binary_ref: Mapped[str] = mapped_column(String(512))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[KernelStatus] = mapped_column(_words(KernelStatus), default=KernelStatus.PENDING_VALIDATION)
    compilation_time_ms: Mapped[float]
    target_device: Mapped[str] = mapped_column(String(64))
    optimization_level: Mapped[str] = mapped_column(String(8))
    compiler_version: Mapped[str] = mapped_column(String(128))
    validation_passed: Mapped[bool] = mapped_column(default=False)
    validation_metrics: Mapped[JsonObject] = mapped_column(JSON, default=dict)
    safety_checks_passed: Mapped[bool] = mapped_column(default=False)
    benchmark_results: Mapped[JsonObject] = mapped_column(JSON, default=dict)
    throughput: Mapped[float | None] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(default=_now)

    blueprint: Mapped[Blueprint] = relationship(back_populates="kernels")
    report: Mapped["ValidationReport | None"] = relationship(cascade="all, delete-orphan")


class ValidationReport(Base):
    """What the validator found about one kernel."""

    __tablename__ = "validation_reports"

    kernel_id: Mapped[str] = mapped_column(_DIGEST, ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True)
    passed: Mapped[bool]
    content: Mapped[JsonObject] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=_now)


class CompileJobRow(Base):
    """One build of one blueprint: asked for, at work, or ended with a kernel or a reason.

    Times are seconds since the epoch, so that leases are compared as numbers in every database.
    """

    __tablename__ = "compile_jobs"
    __table_args__ = (Index("ix_compile_jobs_next", "status", "priority", "queued_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    blueprint_id: Mapped[str] = mapped_column(_DIGEST, ForeignKey("blueprints.id"), index=True)
    build_key: Mapped[str] = mapped_column(_DIGEST, unique=True)
    build: Mapped[JsonObject] = mapped_column(JSON)
    priority: Mapped[int] = mapped_column(Integer)
    status: Mapped[JobStatus] = mapped_column(_words(JobStatus), default=JobStatus.QUEUED)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    deaths: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(_NAME)
    lease_until: Mapped[float | None]
    queued_at: Mapped[float]
    claimed_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(String, default="")
    kernel_id: Mapped[str | None] = mapped_column(_DIGEST, ForeignKey("kernels.id"))

    blueprint: Mapped[Blueprint] = relationship()
    kernel: Mapped[Kernel | None] = relationship()


class OutcomeRow(Base):
    """What a graft brought; one row for each decision."""

    __tablename__ = "outcomes"

    decision_id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    run_id: Mapped[str] = mapped_column(_NAME, index=True)
    kernel_id: Mapped[str] = mapped_column(_DIGEST, index=True)
    verdict: Mapped[str] = mapped_column(String(32))
    gain: Mapped[float | None]
    gain_error: Mapped[float | None]
    content: Mapped[dict[str, JsonValue]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=_now)


class OutboxRow(Base):
    """A message that waits to be published; it was written together with what it announces."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    stream: Mapped[str] = mapped_column(_NAME)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(default=_now)
