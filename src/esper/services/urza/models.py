"""Tables of the artifact store: blueprints, kernels, builds and what came of them."""

from datetime import datetime
from enum import StrEnum

from pydantic import JsonValue
from sqlalchemy import (
    JSON,
    BigInteger,
    Computed,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from esper.contracts.kernel import BlueprintStatus, JobPhase, JsonObject, KernelStatus
from esper.services.urza.base import DIGEST, NAME, Base, now, words
from esper.services.urza.terms import TAG_MARK

TERM = String(129).with_variant(String(129, collation="C"), "postgresql")
"""Terms are compared byte by byte everywhere, so that words with one beginning lie together in the index."""

FILTERS = ("target_device", "latency_ms", "size_bytes", "num_params")
"""Columns at the end of the ordered indexes, so that a list is filtered without visiting its rows."""


class JobStatus(StrEnum):
    """How far the forge is with a build."""

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    REJECTED = "rejected"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class Blueprint(Base):
    """A design; its id is the digest of its canonical form.

    Attributes:
        signature: The bits of all its terms; triggers of the database keep it so.
    """

    __tablename__ = "blueprints"
    __table_args__ = (UniqueConstraint("name", "version", name="uq_blueprints_name_version"),)

    id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    name: Mapped[str] = mapped_column(NAME)
    architecture_ir: Mapped[JsonObject] = mapped_column(JSON)
    status: Mapped[BlueprintStatus] = mapped_column(words(BlueprintStatus), default=BlueprintStatus.UNVALIDATED)
    version: Mapped[int] = mapped_column(Integer, default=1)
    parent_id: Mapped[str | None] = mapped_column(DIGEST, ForeignKey("blueprints.id"), index=True)
    submitted_by: Mapped[str] = mapped_column(NAME, default="system")
    details: Mapped[JsonObject] = mapped_column("metadata", JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)
    estimated_flops: Mapped[int | None] = mapped_column(BigInteger)
    memory_footprint_mb: Mapped[float | None]
    signature: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")

    kernels: Mapped[list["Kernel"]] = relationship(back_populates="blueprint")
    parent: Mapped["Blueprint | None"] = relationship(remote_side=[id], back_populates="children")
    children: Mapped[list["Blueprint"]] = relationship(back_populates="parent")
    term_rows: Mapped[list["BlueprintTerm"]] = relationship(cascade="all, delete-orphan", passive_deletes=True)

    @property
    def tags(self) -> list[str]:
        """Its tags, in alphabetical order."""
        return sorted(row.term.removeprefix(TAG_MARK) for row in self.term_rows if row.term.startswith(TAG_MARK))


class BlueprintTerm(Base):
    """A term of a blueprint: one of its tags with a mark before it, or one word of its name.

    Attributes:
        bits: Its bits in signatures; all of them where whoever wrote it did not say, which is right and slow.
    """

    __tablename__ = "blueprint_terms"
    __table_args__ = (Index("ix_blueprint_terms_term", "term", "blueprint_id"),)

    blueprint_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True)
    term: Mapped[str] = mapped_column(TERM, primary_key=True)
    bits: Mapped[int] = mapped_column(BigInteger, server_default="-1")


class BlueprintPair(Base):
    """Two terms that one blueprint has; triggers of the database keep it so.

    Which blueprints have both is read from the index, also where many have either and none has both.
    """

    __tablename__ = "blueprint_pairs"
    __table_args__ = (
        Index("ix_blueprint_pairs_first", "first", "second", "blueprint_id"),
        Index("ix_blueprint_pairs_second", "second", "first", "blueprint_id"),
    )

    blueprint_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True)
    first: Mapped[str] = mapped_column(TERM, primary_key=True)
    second: Mapped[str] = mapped_column(TERM, primary_key=True)


class Blob(Base):
    """Bytes that the blob store holds, or is about to; whoever refers to bytes refers to this row.

    Attributes:
        touched_at: When somebody last said that they need them, in seconds since the epoch; garbage is older.
    """

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    touched_at: Mapped[float] = mapped_column(Double, index=True)


class Kernel(Base):
    """A compiled blueprint; its id is the digest of its bytes. It may be grafted once its status is VALIDATED.

    Attributes:
        throughput: Examples per second; None where it was not measured.
        rank: Place in every list, rising from the fastest kernel to those that were not measured (NULLS LAST in a number, so
            that one index and one comparison of pairs serve both databases).
        num_params: Numbers that training can change; 0 for a kernel without parameters.
        tags: Those of its blueprint, in alphabetical order; triggers of the database keep it so.
    """

    __tablename__ = "kernels"
    __table_args__ = (
        Index("ix_kernels_status_rank", "status", "rank", "id", *FILTERS, "blueprint_id"),
        Index("ix_kernels_blueprint_rank", "blueprint_id", "status", "rank", "id"),
        Index("ix_kernels_device_rank", "target_device", "status", "rank", "id"),
        Index("ix_kernels_latency", "status", "latency_ms"),
    )

    id: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    blueprint_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("blueprints.id"))
    kernel_binary_ref: Mapped[str] = mapped_column(
        DIGEST, ForeignKey("blobs.digest", name="fk_kernels_blob"), index=True
    )
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[KernelStatus] = mapped_column(words(KernelStatus), default=KernelStatus.PENDING_VALIDATION)
    compilation_time_ms: Mapped[float]
    target_device: Mapped[str] = mapped_column(String(64))
    optimization_level: Mapped[str] = mapped_column(String(8))
    compiler_version: Mapped[str] = mapped_column(String(128))
    validation_passed: Mapped[bool] = mapped_column(default=False)
    validation_metrics: Mapped[JsonObject] = mapped_column(JSON, default=dict)
    safety_checks_passed: Mapped[bool] = mapped_column(default=False)
    benchmark_results: Mapped[JsonObject] = mapped_column(JSON, default=dict)
    throughput: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)
    latency_ms: Mapped[float | None] = mapped_column(Double)
    num_params: Mapped[int | None] = mapped_column(BigInteger)
    tags: Mapped[list[str]] = mapped_column(JSON, default=list, server_default="[]")
    rank: Mapped[float] = mapped_column(
        Double, Computed("CASE WHEN throughput IS NULL THEN 1.0 ELSE -throughput END", persisted=True)
    )

    blueprint: Mapped[Blueprint] = relationship(back_populates="kernels")
    report: Mapped["ValidationReport | None"] = relationship(cascade="all, delete-orphan")


class InferenceFormRow(Base):
    """What a level added to a kernel: its bytes, and who vouches for them. A later one of the same make takes its place.

    Attributes:
        content: The whole form, as `esper.contracts.kernel.InferenceForm` has it.
    """

    __tablename__ = "inference_forms"

    kernel_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True)
    backend: Mapped[str] = mapped_column(String(32), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    torch: Mapped[str] = mapped_column(String(64), primary_key=True)
    level: Mapped[str] = mapped_column(String(8))
    digest: Mapped[str] = mapped_column(DIGEST, ForeignKey("blobs.digest"), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    latency_ms: Mapped[float | None] = mapped_column(Double)
    seal: Mapped[bytes] = mapped_column(LargeBinary)
    content: Mapped[JsonObject] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now)


class KernelTerm(Base):
    """A term of a kernel's blueprint beside what kernels are listed by; triggers of the database keep it so.

    A search by a term reads its page from an index, in order, however many kernels have the term. The device has an index of its
    own: the kernels of the slowest device would come last in every list.

    Attributes:
        signature: The bits of all terms of the blueprint, by which most rows that lack another term are passed over.
    """

    __tablename__ = "kernel_terms"
    __table_args__ = (
        Index("ix_kernel_terms_rank", "term", "status", "rank", "kernel_id", *FILTERS, "signature"),
        Index(
            "ix_kernel_terms_device", "term", "target_device", "status", "rank", "kernel_id", *FILTERS[1:], "signature"
        ),
    )

    kernel_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True)
    term: Mapped[str] = mapped_column(TERM, primary_key=True)
    status: Mapped[KernelStatus] = mapped_column(words(KernelStatus))
    rank: Mapped[float] = mapped_column(Double)
    target_device: Mapped[str] = mapped_column(String(64))
    latency_ms: Mapped[float | None] = mapped_column(Double)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    num_params: Mapped[int | None] = mapped_column(BigInteger)
    signature: Mapped[int] = mapped_column(BigInteger)


class BenchmarkResult(Base):
    """One figure of one kernel on one kind of hardware; a later measurement takes its place."""

    __tablename__ = "benchmark_results"
    __table_args__ = (Index("ix_benchmark_results_peers", "device", "metric", "measured_at"),)

    kernel_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), primary_key=True)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[float] = mapped_column(Double)
    measured_at: Mapped[datetime] = mapped_column(default=now)


class ValidationReport(Base):
    """What the validator found about one kernel."""

    __tablename__ = "validation_reports"

    kernel_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True)
    passed: Mapped[bool]
    content: Mapped[JsonObject] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now)


class CompileJobRow(Base):
    """One build of one blueprint: asked for, at work, or ended with a kernel or a reason.

    Times are seconds since the epoch, so that leases are compared as numbers in every database.
    """

    __tablename__ = "compile_jobs"
    __table_args__ = (Index("ix_compile_jobs_next", "status", "priority", "queued_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    blueprint_id: Mapped[str] = mapped_column(DIGEST, ForeignKey("blueprints.id"), index=True)
    build_key: Mapped[str] = mapped_column(DIGEST, unique=True)
    build: Mapped[JsonObject] = mapped_column(JSON)
    priority: Mapped[int] = mapped_column(Integer)
    status: Mapped[JobStatus] = mapped_column(words(JobStatus), default=JobStatus.QUEUED)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    deaths: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(NAME)
    lease_until: Mapped[float | None]
    queued_at: Mapped[float]
    claimed_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    reason: Mapped[str] = mapped_column(String, default="")
    kernel_id: Mapped[str | None] = mapped_column(DIGEST, ForeignKey("kernels.id"), index=True)
    phase: Mapped[JobPhase] = mapped_column(
        words(JobPhase), default=JobPhase.BUILD, server_default=JobPhase.BUILD.value
    )

    blueprint: Mapped[Blueprint] = relationship()
    kernel: Mapped[Kernel | None] = relationship()


class OutcomeRow(Base):
    """What a graft brought; one row for each decision.

    Its kernel has no foreign key: a run may report about a kernel of another library, or about one that was collected since, and
    what it brought stays true.
    """

    __tablename__ = "outcomes"

    decision_id: Mapped[str] = mapped_column(NAME, primary_key=True)
    run_id: Mapped[str] = mapped_column(NAME, index=True)
    kernel_id: Mapped[str] = mapped_column(DIGEST, index=True)
    verdict: Mapped[str] = mapped_column(String(32))
    gain: Mapped[float | None]
    gain_error: Mapped[float | None]
    content: Mapped[dict[str, JsonValue]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now)


class OutboxRow(Base):
    """A message that waits to be published; it was written together with what it announces."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    stream: Mapped[str] = mapped_column(NAME)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(default=now)
