"""Tags and words of names in one table of terms, with pairs and signatures, so that several are looked for at once."""

import sqlalchemy as sa
from alembic import context, op

from esper.services.urza import found_by
from esper.services.urza.migrations import tags
from esper.services.urza.terms import SQL_BITS, bits_of

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_DIGEST = sa.String(71)
_NAME = sa.String(128)
_WORD = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
_TERM = sa.String(129).with_variant(sa.String(129, collation="C"), "postgresql")
_FILTERS = ("target_device", "latency_ms", "size_bytes", "num_params")
_COPIES = ", ".join(("status", "rank", *_FILTERS))


def upgrade() -> None:
    """Make the tables, fill them from what there is, and only then let the triggers watch."""
    dialect = _dialect()
    for statement in tags.without_triggers(dialect):
        op.execute(statement)
    op.add_column("blueprints", sa.Column("signature", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("kernels", sa.Column("tags", sa.JSON, nullable=False, server_default="[]"))
    _make_tables()
    _fill(dialect)
    _make_indexes()
    for table in ("kernel_tags", "blueprint_words", "blueprint_tags"):
        op.drop_table(table)
    for statement in found_by.triggers(dialect):
        op.execute(statement)


def downgrade() -> None:
    """Take terms apart into tags and words again."""
    dialect = _dialect()
    for statement in found_by.without_triggers(dialect):
        op.execute(statement)
    _make_tag_tables()
    op.execute(
        "INSERT INTO blueprint_tags (blueprint_id, tag)"
        " SELECT blueprint_id, substr(term, 2) FROM blueprint_terms WHERE term < '$'"
    )
    op.execute(
        "INSERT INTO blueprint_words (blueprint_id, word) SELECT blueprint_id, term FROM blueprint_terms WHERE term > '$'"
    )
    op.execute(
        f"INSERT INTO kernel_tags (kernel_id, tag, {_COPIES}) SELECT kernels.id, tag, {_COPIES}"
        " FROM kernels JOIN blueprint_tags ON blueprint_tags.blueprint_id = kernels.blueprint_id"
    )
    for table in ("kernel_terms", "blueprint_pairs", "blueprint_terms"):
        op.drop_table(table)
    op.drop_column("kernels", "tags")
    op.drop_column("blueprints", "signature")
    op.create_index("ix_blueprint_tags_tag", "blueprint_tags", ["tag", "blueprint_id"])
    op.create_index("ix_blueprint_words_word", "blueprint_words", ["word", "blueprint_id"])
    op.create_index("ix_kernel_tags_tag", "kernel_tags", ["tag", "status", "rank", "kernel_id", *_FILTERS])
    for statement in tags.triggers(dialect):
        op.execute(statement)


def _dialect() -> str:
    return op.get_bind().dialect.name if not context.is_offline_mode() else op.get_context().dialect.name


def _make_tables() -> None:
    op.create_table(
        "blueprint_terms",
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("term", _TERM, primary_key=True),
        sa.Column("bits", sa.BigInteger, nullable=False, server_default="-1"),
    )
    op.create_table(
        "blueprint_pairs",
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("first", _TERM, primary_key=True),
        sa.Column("second", _TERM, primary_key=True),
    )
    op.create_table(
        "kernel_terms",
        sa.Column("kernel_id", _DIGEST, sa.ForeignKey("kernels.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("term", _TERM, primary_key=True),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("rank", sa.Double, nullable=False),
        sa.Column("target_device", sa.String(64), nullable=False),
        sa.Column("latency_ms", sa.Double),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_params", sa.BigInteger),
        sa.Column("signature", sa.BigInteger, nullable=False),
    )


def _fill(dialect: str) -> None:
    """Fill the tables; the words are those of revision 0002."""
    on_postgresql = dialect == "postgresql"
    op.execute("INSERT INTO blueprint_terms (blueprint_id, term) SELECT blueprint_id, '#' || tag FROM blueprint_tags")
    op.execute("INSERT INTO blueprint_terms (blueprint_id, term) SELECT blueprint_id, word FROM blueprint_words")
    if on_postgresql:
        op.execute(f"UPDATE blueprint_terms SET bits = {SQL_BITS.format(term='term')}")
        op.execute(
            "UPDATE blueprints SET signature = found.bits FROM"
            " (SELECT blueprint_id, bit_or(bits) AS bits FROM blueprint_terms GROUP BY blueprint_id) AS found"
            " WHERE found.blueprint_id = blueprints.id"
        )
    else:
        _sign()
    op.execute(
        "INSERT INTO blueprint_pairs (blueprint_id, first, second) SELECT a.blueprint_id, a.term, b.term"
        " FROM blueprint_terms AS a JOIN blueprint_terms AS b ON a.blueprint_id = b.blueprint_id AND a.term < b.term"
    )
    op.execute(
        f"INSERT INTO kernel_terms (kernel_id, term, {_COPIES}, signature)"
        f" SELECT kernels.id, term, {', '.join(f'kernels.{name}' for name in _COPIES.split(', '))}, signature FROM kernels"
        " JOIN blueprints ON blueprints.id = kernels.blueprint_id"
        " JOIN blueprint_terms ON blueprint_terms.blueprint_id = kernels.blueprint_id"
    )
    listed = 'json_agg(tag ORDER BY tag COLLATE "C")' if on_postgresql else "json_group_array(tag)"
    found = "SELECT tag FROM blueprint_tags WHERE blueprint_id = kernels.blueprint_id"
    ordered = found if on_postgresql else f"{found} ORDER BY tag"
    op.execute(f"UPDATE kernels SET tags = COALESCE((SELECT {listed} FROM ({ordered}) AS found), '[]')")


def _sign() -> None:
    """Write bits and signatures where the database has no function for digests."""
    connection = op.get_bind()
    for (term,) in connection.execute(sa.text("SELECT DISTINCT term FROM blueprint_terms")).all():
        connection.execute(
            sa.text("UPDATE blueprint_terms SET bits = :bits WHERE term = :term"), {"bits": bits_of(term), "term": term}
        )
    signatures: dict[str, int] = {}
    for key, bits in connection.execute(sa.text("SELECT blueprint_id, bits FROM blueprint_terms")).all():
        signatures[key] = signatures.get(key, 0) | bits
    for key, signature in signatures.items():
        connection.execute(
            sa.text("UPDATE blueprints SET signature = :signature WHERE id = :key"),
            {"signature": signature, "key": key},
        )


def _make_indexes() -> None:
    op.create_index("ix_blueprint_terms_term", "blueprint_terms", ["term", "blueprint_id"])
    op.create_index("ix_blueprint_pairs_first", "blueprint_pairs", ["first", "second", "blueprint_id"])
    op.create_index("ix_blueprint_pairs_second", "blueprint_pairs", ["second", "first", "blueprint_id"])
    op.create_index(
        "ix_kernel_terms_rank", "kernel_terms", ["term", "status", "rank", "kernel_id", *_FILTERS, "signature"]
    )
    op.create_index(
        "ix_kernel_terms_device",
        "kernel_terms",
        ["term", "target_device", "status", "rank", "kernel_id", *_FILTERS[1:], "signature"],
    )


def _make_tag_tables() -> None:
    op.create_table(
        "blueprint_tags",
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag", _NAME, primary_key=True),
    )
    op.create_table(
        "blueprint_words",
        sa.Column("blueprint_id", _DIGEST, sa.ForeignKey("blueprints.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("word", _WORD, primary_key=True),
    )
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
