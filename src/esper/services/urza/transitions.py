"""Which status may follow which, kept by the database itself: a table of pairs, and triggers that look into it.

The same statements make the triggers in `esper.services.urza.database.prepare` and in the migrations.
"""

from sqlalchemy import Connection, MetaData, String, Table, event, insert, text
from sqlalchemy.orm import Mapped, mapped_column

from esper.services.urza import found_by
from esper.services.urza.base import Base

BLUEPRINT, KERNEL, JOB = "blueprints", "kernels", "compile_jobs"

PAIRS: dict[str, dict[str, tuple[str, ...]]] = {
    BLUEPRINT: {
        "": ("unvalidated",),
        "unvalidated": ("compiling", "validated", "rejected", "quarantined"),
        "compiling": ("unvalidated", "validated", "rejected", "quarantined"),
        "validated": ("deployed", "quarantined"),
        "deployed": ("validated", "quarantined"),
        "rejected": ("unvalidated", "compiling", "validated", "quarantined"),
        "quarantined": ("unvalidated",),
    },
    KERNEL: {
        "": ("pending_validation",),
        "pending_validation": ("validated", "rejected"),
        "validated": ("retired", "rejected"),
        "retired": ("validated",),
        "rejected": (),
    },
    JOB: {
        "": ("queued", "quarantined"),
        "queued": ("leased", "quarantined"),
        "leased": ("queued", "done", "rejected", "failed", "quarantined"),
        "failed": ("queued",),
        "done": (),
        "rejected": (),
        "quarantined": (),
    },
}
"""By table: from a status (empty before the row exists) to those that may follow."""

REFUSAL = "status may not follow"
"""Part of what the database says when it refuses."""
UNPROVEN = "no passed validation report"


class StatusTransition(Base):
    """One pair of statuses of which the second may follow the first."""

    __tablename__ = "status_transitions"

    subject: Mapped[str] = mapped_column(String(32), primary_key=True)
    source: Mapped[str] = mapped_column(String(32), primary_key=True)
    target: Mapped[str] = mapped_column(String(32), primary_key=True)


def rows() -> list[dict[str, str]]:
    """Return the content of the table."""
    return [
        {"subject": subject, "source": source, "target": target}
        for subject, pairs in PAIRS.items()
        for source, targets in pairs.items()
        for target in targets
    ]


def triggers(dialect: str) -> list[str]:
    """Return the statements that make every trigger."""
    return _POSTGRESQL if dialect == "postgresql" else _SQLITE


def without_triggers(dialect: str) -> list[str]:
    """Return the statements that take every trigger away."""
    if dialect == "postgresql":
        return ["DROP FUNCTION esper_status() CASCADE"]
    return [f"DROP TRIGGER {statement.split()[2]}" for statement in _SQLITE]


def _known(subject: str, source: str) -> str:
    return (
        f"EXISTS (SELECT 1 FROM status_transitions WHERE subject = '{subject}'"
        f" AND source = {source} AND target = NEW.status)"
    )


_PROVEN = "EXISTS (SELECT 1 FROM validation_reports WHERE kernel_id = NEW.id AND passed)"


def _sqlite_status(subject: str) -> list[str]:
    return [
        f"CREATE TRIGGER {subject}_status_first BEFORE INSERT ON {subject} WHEN NOT {_known(subject, repr(''))}"
        f" BEGIN SELECT RAISE(ABORT, '{REFUSAL}: {subject} begin otherwise'); END",
        f"CREATE TRIGGER {subject}_status_next BEFORE UPDATE OF status ON {subject}"
        f" WHEN NEW.status <> OLD.status AND NOT {_known(subject, 'OLD.status')}"
        f" BEGIN SELECT RAISE(ABORT, '{REFUSAL}: {subject}'); END",
    ]


_SQLITE = [
    *(statement for subject in PAIRS for statement in _sqlite_status(subject)),
    f"CREATE TRIGGER kernels_proven BEFORE UPDATE OF status ON kernels WHEN NEW.status = 'validated' AND NOT {_PROVEN}"
    f" BEGIN SELECT RAISE(ABORT, '{UNPROVEN}'); END",
]


def _function(name: str, body: str) -> str:
    return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$"


def _trigger(name: str, when: str, function: str) -> str:
    return f"CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION {function}()"


_POSTGRESQL = [
    _function(
        "esper_status",
        "IF TG_OP = 'UPDATE' AND NEW.status = OLD.status THEN RETURN NEW; END IF;"
        " IF NOT EXISTS (SELECT 1 FROM status_transitions WHERE subject = TG_TABLE_NAME AND target = NEW.status"
        " AND source = CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD.status END)"
        f" THEN RAISE EXCEPTION '{REFUSAL}: %', TG_TABLE_NAME USING ERRCODE = 'check_violation'; END IF;"
        f" IF TG_TABLE_NAME = 'kernels' AND NEW.status = 'validated' AND NOT {_PROVEN}"
        f" THEN RAISE EXCEPTION '{UNPROVEN}' USING ERRCODE = 'check_violation'; END IF; RETURN NEW;",
    ),
    *(
        _trigger(f"{subject}_status", f"BEFORE INSERT OR UPDATE OF status ON {subject}", "esper_status")
        for subject in PAIRS
    ),
]


@event.listens_for(Base.metadata, "after_create")
def _fill(_: MetaData, connection: Connection, tables: list[Table] | None = None, **__: object) -> None:
    """Make the triggers where the tables were just made."""
    if tables and any(table.name == StatusTransition.__tablename__ for table in tables):
        connection.execute(insert(StatusTransition), rows())
        dialect = connection.dialect.name
        for statement in (*triggers(dialect), *found_by.triggers(dialect)):
            connection.execute(text(statement.replace(":", "\\:")))
