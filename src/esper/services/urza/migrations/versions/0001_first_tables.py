"""First tables: blueprints, kernels, reports, jobs, outcomes and the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_DIGEST = sa.String(71)
_NAME = sa.String(128)
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables, each after those that it refers to."""
    _blueprints()
    _kernels()
    _jobs()
    _records()


def downgrade() -> None:
    """Drop them, each before those that it refers to."""
    for table in (
        "outbox", "outcomes", "compile_jobs", "validation_reports", "kernels", "blueprint_tags", "blueprints",
    ):  # fmt: skip
        op.drop_table(table)


def _blueprints() -> None:
    op.create_table(
        "blueprints",
        sa.Column("id", _DIGEST, primary_key=True),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("architecture_ir", sa.JSON, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("parent_id", _DIGEST, sa.ForeignKey("blueprints.id"), index=True),
        sa.Column("submitted_by", _NAME, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.Column("estimated_flops", sa.BigInteger),
        sa.Column("memory_footprint_mb", sa.Double),
        sa.UniqueConstraint("name", "version", name="uq_blueprints_name_version"),
    )
    op.create_table(
        "blueprint_tags",
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag", _NAME, primary_key=True),
    )
    op.create_index("ix_blueprint_tags_tag", "blueprint_tags", ["tag", "blueprint_id"])


def _kernels() -> None:
    op.create_table(
        "kernels",
        sa.Column("id", _DIGEST, primary_key=True),
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id"), nullable=False, index=True),
        sa.Column("kernel_binary_ref", sa.String(512), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("compilation_time_ms", sa.Double, nullable=False),
        sa.Column("target_device", sa.String(64), nullable=False),
        sa.Column("optimization_level", sa.String(8), nullable=False),
        sa.Column("compiler_version", _NAME, nullable=False),
        sa.Column("validation_passed", sa.Boolean, nullable=False),
        sa.Column("validation_metrics", sa.JSON, nullable=False),
        sa.Column("safety_checks_passed", sa.Boolean, nullable=False),
        sa.Column("benchmark_results", sa.JSON, nullable=False),
        sa.Column("throughput", sa.Double, index=True),
        sa.Column("created_at", _MOMENT, nullable=False),
    )
    op.create_index("ix_kernels_status_throughput", "kernels", ["status", "throughput"])
    op.create_table(
        "validation_reports",
        sa.Column("kernel_id", _DIGEST, sa.ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
    )


def _jobs() -> None:
    op.create_table(
        "compile_jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id"), nullable=False, index=True),
        sa.Column("build_key", _DIGEST, nullable=False, unique=True),
        sa.Column("build", sa.JSON, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("worker", _NAME),
        sa.Column("lease_until", sa.Double),
        sa.Column("queued_at", sa.Double, nullable=False),
        sa.Column("claimed_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("kernel_id", _DIGEST, sa.ForeignKey("kernels.id")),
    )
    op.create_index("ix_compile_jobs_next", "compile_jobs", ["status", "priority", "queued_at"])


def _records() -> None:
    op.create_table(
        "outcomes",
        sa.Column("decision_id", _NAME, primary_key=True),
        sa.Column("run_id", _NAME, nullable=False, index=True),
        sa.Column("kernel_id", _DIGEST, nullable=False, index=True),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("gain", sa.Double),
        sa.Column("gain_error", sa.Double),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("stream", _NAME, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
    )
