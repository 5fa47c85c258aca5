"""Search by tag, name and measure; blobs with their garbage; statuses kept by the database; keys and the audit log."""

import re

import sqlalchemy as sa
from alembic import context, op

from esper.services.urza import transitions
from esper.services.urza.migrations import tags

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DIGEST = sa.String(71)
_NAME = sa.String(128)
_WORD = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
_MOMENT = sa.DateTime(timezone=True)
_FILTERS = ("target_device", "latency_ms", "size_bytes", "num_params")
_RANK = "CASE WHEN throughput IS NULL THEN 1.0 ELSE -throughput END"


def upgrade() -> None:
    """Make the tables, fill them from what there is, and only then let the triggers watch."""
    dialect = op.get_bind().dialect.name if not context.is_offline_mode() else op.get_context().dialect.name
    _make_tables()
    op.execute(
        "INSERT INTO blobs (digest, size_bytes, touched_at)"
        " SELECT kernel_binary_ref, MAX(size_bytes), 0 FROM kernels GROUP BY kernel_binary_ref"
    )
    _change_kernels(dialect)
    op.create_index("ix_compile_jobs_kernel_id", "compile_jobs", ["kernel_id"])
    _fill(dialect)
    for statement in (*transitions.triggers(dialect), *tags.triggers(dialect)):
        op.execute(statement)


def downgrade() -> None:
    """Take back everything; kernels and blueprints stay as they are."""
    dialect = op.get_bind().dialect.name if not context.is_offline_mode() else op.get_context().dialect.name
    for statement in (*tags.without_triggers(dialect), *transitions.without_triggers(dialect)):
        op.execute(statement)
    op.drop_index("ix_compile_jobs_kernel_id", "compile_jobs")
    _change_kernels_back(dialect)
    for table in (
        "idempotency_keys", "audit_log", "api_keys", "status_transitions", "benchmark_results", "kernel_tags",
        "blueprint_words", "blobs",
    ):  # fmt: skip
        op.drop_table(table)


def _make_tables() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", _DIGEST, primary_key=True),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("touched_at", sa.Double, nullable=False, index=True),
    )
    op.create_table(
        "blueprint_words",
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("word", _WORD, primary_key=True),
    )
    op.create_index("ix_blueprint_words_word", "blueprint_words", ["word", "blueprint_id"])
    op.create_table(
        "kernel_tags",
        sa.Column("kernel_id", _DIGEST, sa.ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag", _NAME, primary_key=True),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("rank", sa.Double, nullable=False),
        sa.Column("target_device", sa.String(64), nullable=False),
        sa.Column("latency_ms", sa.Double),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_params", sa.BigInteger),
    )
    op.create_index("ix_kernel_tags_tag", "kernel_tags", ["tag", "status", "rank", "kernel_id", *_FILTERS])
    op.create_table(
        "benchmark_results",
        sa.Column("kernel_id", _DIGEST, sa.ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("metric", sa.String(64), primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("measured_at", _MOMENT, nullable=False),
    )
    pairs = op.create_table(
        "status_transitions",
        sa.Column("subject", sa.String(32), primary_key=True),
        sa.Column("source", sa.String(32), primary_key=True),
        sa.Column("target", sa.String(32), primary_key=True),
    )
    op.bulk_insert(pairs, transitions.rows())
    _make_access()


def _make_access() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("key_hash", _DIGEST, nullable=False, unique=True),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT),
        sa.Column("revoked_at", _MOMENT),
        sa.Column("last_used_at", _MOMENT),
        sa.Column("rotated_from", sa.String(64), sa.ForeignKey("api_keys.id")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", _MOMENT, nullable=False, index=True),
        sa.Column("actor", _NAME, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", _NAME, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("ix_audit_log_subject", "audit_log", ["subject", "id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.String(256), primary_key=True),
        sa.Column("request_hash", _DIGEST, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.LargeBinary),
        sa.Column("created_at", _MOMENT, nullable=False, index=True),
    )


def _change_kernels(dialect: str) -> None:
    for index in ("ix_kernels_status_throughput", "ix_kernels_throughput", "ix_kernels_blueprint_id"):
        op.drop_index(index, "kernels")
    with op.batch_alter_table("kernels") as kernels:
        kernels.alter_column("kernel_binary_ref", type_=_DIGEST, existing_type=sa.String(512), existing_nullable=False)
        kernels.add_column(sa.Column("updated_at", _MOMENT))
        kernels.add_column(sa.Column("latency_ms", sa.Double))
        kernels.add_column(sa.Column("num_params", sa.BigInteger))
        kernels.create_foreign_key("fk_kernels_blob", "blobs", ["kernel_binary_ref"], ["digest"])
    latency, params = ("latency_p50_ms", "params")
    if dialect == "postgresql":
        read = "CAST(validation_metrics ->> '{}' AS DOUBLE PRECISION)"
    else:
        read = "json_extract(validation_metrics, '$.{}')"
    op.execute(
        f"UPDATE kernels SET updated_at = created_at, latency_ms = {read.format(latency)},"
        f" num_params = CAST({read.format(params)} AS BIGINT)"
    )
    with op.batch_alter_table("kernels") as kernels:
        kernels.alter_column("updated_at", existing_type=_MOMENT, nullable=False)
        kernels.add_column(sa.Column("rank", sa.Double, sa.Computed(_RANK, persisted=True), nullable=False))
    op.create_index("ix_kernels_kernel_binary_ref", "kernels", ["kernel_binary_ref"])
    op.create_index("ix_kernels_status_rank", "kernels", ["status", "rank", "id", *_FILTERS, "blueprint_id"])
    op.create_index("ix_kernels_blueprint_rank", "kernels", ["blueprint_id", "status", "rank", "id"])
    op.create_index("ix_kernels_device_rank", "kernels", ["target_device", "status", "rank", "id"])
    op.create_index("ix_kernels_latency", "kernels", ["status", "latency_ms"])


def _change_kernels_back(dialect: str) -> None:
    for index in ("latency", "device_rank", "blueprint_rank", "status_rank", "kernel_binary_ref"):
        op.drop_index(f"ix_kernels_{index}", "kernels")
    with op.batch_alter_table("kernels") as kernels:
        kernels.drop_constraint("fk_kernels_blob", type_="foreignkey")
        for column in ("rank", "num_params", "latency_ms", "updated_at"):
            kernels.drop_column(column)
        kernels.alter_column("kernel_binary_ref", type_=sa.String(512), existing_type=_DIGEST, existing_nullable=False)
    op.create_index("ix_kernels_status_throughput", "kernels", ["status", "throughput"])
    op.create_index("ix_kernels_throughput", "kernels", ["throughput"])
    op.create_index("ix_kernels_blueprint_id", "kernels", ["blueprint_id"])


def _fill(dialect: str) -> None:
    """Fill what is looked up from what it is made of."""
    op.execute(
        f"INSERT INTO kernel_tags (kernel_id, tag, status, rank, {', '.join(_FILTERS)})"
        f" SELECT kernels.id, tag, status, rank, {', '.join(_FILTERS)}"
        " FROM kernels JOIN blueprint_tags ON blueprint_tags.blueprint_id = kernels.blueprint_id"
    )
    figures = "CAST(figure.value AS TEXT)" if dialect == "postgresql" else "figure.value"
    each = "json_each(kernels.benchmark_results)"
    op.execute(
        "INSERT INTO benchmark_results (kernel_id, device, metric, value, measured_at)"
        f" SELECT kernels.id, target_device, figure.key, CAST({figures} AS DOUBLE PRECISION), created_at"
        f" FROM kernels, {each} AS figure"
    )
    if context.is_offline_mode():
        op.execute(
            "INSERT INTO blueprint_words (blueprint_id, word) SELECT DISTINCT id, word"
            " FROM blueprints, regexp_split_to_table(lower(name), '[^[:alnum:]]+') AS word WHERE word <> ''"
        )
        return
    connection = op.get_bind()
    words = sa.table("blueprint_words", sa.column("blueprint_id"), sa.column("word"))
    for key, name in connection.execute(sa.text("SELECT id, name FROM blueprints")).all():
        for word in sorted(set(re.findall(r"[^\W_]+", name.lower()))):
            connection.execute(words.insert().values(blueprint_id=key, word=word))
