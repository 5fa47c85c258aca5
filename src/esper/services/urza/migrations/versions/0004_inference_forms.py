"""What levels add to kernels, and jobs that finish a kernel which is there."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_DIGEST = sa.String(71)


def upgrade() -> None:
    """Make the table, and say of every job that it builds."""
    op.create_table(
        "inference_forms",
        sa.Column("kernel_id", _DIGEST, sa.ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("backend", sa.String(32), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("torch", sa.String(64), primary_key=True),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("digest", _DIGEST, sa.ForeignKey("blobs.digest"), nullable=False, index=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("latency_ms", sa.Double),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column("compile_jobs", sa.Column("phase", sa.String(32), nullable=False, server_default="build"))


def downgrade() -> None:
    """Take back both; a job that finishes a kernel is no build, and goes."""
    op.execute("DELETE FROM compile_jobs WHERE phase <> 'build'")
    op.drop_column("compile_jobs", "phase")
    op.drop_table("inference_forms")
