"""Figures of kernels on the same hardware, the latest first."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index by which a kernel is compared with its peers."""
    op.create_index("ix_benchmark_results_peers", "benchmark_results", ["device", "metric", "measured_at"])


def downgrade() -> None:
    """Take it back."""
    op.drop_index("ix_benchmark_results_peers", table_name="benchmark_results")
