"""Numbers of announcements in 64 bits: after two thousand million of them a busy store would have stood still."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen the numbers and what counts them; SQLite's have 64 bits already."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("outbox", "id", type_=sa.BigInteger)
        op.execute("ALTER SEQUENCE outbox_id_seq AS bigint")


def downgrade() -> None:
    """Make them short again; the database refuses it where longer ones wait, and loses nothing."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("outbox", "id", type_=sa.Integer)
        op.execute("SELECT setval('outbox_id_seq', COALESCE((SELECT max(id) FROM outbox), 0) + 1, false)")
        op.execute("ALTER SEQUENCE outbox_id_seq AS integer")
