"""What kernels are found by, kept by the database itself: triggers copy it to where searches read it.

A term of a blueprint goes to the rows of its kernels in `KernelTerm`, into its pairs with the other terms, into its signature,
and, where it is a tag, into the tags that its kernels show. `esper.services.urza.database.prepare` and the migrations make the
triggers from the same statements.
"""

COPIED = ("status", "rank", "target_device", "latency_ms", "size_bytes", "num_params")
"""Columns of a kernel that its terms have too."""

_COPIES = ", ".join(COPIED)
_LISTED = f"kernel_id, term, {_COPIES}, signature"
_OF_NEW = ", ".join(f"NEW.{name}" for name in COPIED)
_SET_TO_NEW = ", ".join(f"{name} = NEW.{name}" for name in COPIED)
_CHANGING = "status, throughput, target_device, latency_ms, size_bytes, num_params"
_SIGNATURE = "(SELECT signature FROM blueprints WHERE id = NEW.blueprint_id)"
_TAGS = "blueprint_id = {of}.blueprint_id AND term >= '#' AND term < '$'"


def triggers(dialect: str) -> list[str]:
    """Return the statements that make every trigger."""
    return _POSTGRESQL if dialect == "postgresql" else _SQLITE


def without_triggers(dialect: str) -> list[str]:
    """Return the statements that take every trigger away."""
    if dialect == "postgresql":
        return [f"DROP FUNCTION {name}() CASCADE" for name in _FUNCTIONS]
    return [f"DROP TRIGGER {statement.split()[2]}" for statement in _SQLITE]


def _kernels_of(row: str) -> str:
    return f"(SELECT id FROM kernels WHERE blueprint_id = {row}.blueprint_id)"


# What a new term changes: the signature first, which on PostgreSQL locks the blueprint; a kernel and a term, or two terms, that
# are added at the same time would each not see the other.
_ADDED = (
    "UPDATE blueprints SET signature = signature | NEW.bits WHERE id = NEW.blueprint_id;"
    f" UPDATE kernel_terms SET signature = signature | NEW.bits WHERE kernel_id IN {_kernels_of('NEW')};"
    f" INSERT INTO kernel_terms ({_LISTED})"
    f" SELECT id, NEW.term, {_COPIES}, {_SIGNATURE} FROM kernels WHERE blueprint_id = NEW.blueprint_id;"
)
_PAIRED = (
    " INTO blueprint_pairs (blueprint_id, first, second)"
    " SELECT blueprint_id, {least}(term, NEW.term), {greatest}(term, NEW.term) FROM blueprint_terms"
    " WHERE blueprint_id = NEW.blueprint_id AND term <> NEW.term"
)
_REMOVED = (
    f"DELETE FROM kernel_terms WHERE term = OLD.term AND kernel_id IN {_kernels_of('OLD')};"
    " DELETE FROM blueprint_pairs"
    " WHERE blueprint_id = OLD.blueprint_id AND (first = OLD.term OR second = OLD.term);"
)
_INSERTED = (
    f"INSERT INTO kernel_terms ({_LISTED})"
    f" SELECT NEW.id, term, {_OF_NEW}, {_SIGNATURE} FROM blueprint_terms WHERE blueprint_id = NEW.blueprint_id;"
)
_CHANGED = f"UPDATE kernel_terms SET {_SET_TO_NEW} WHERE kernel_id = NEW.id;"


def _sqlite_tags(of: str, kernels: str) -> str:
    tags = f"SELECT substr(term, 2) AS tag FROM blueprint_terms WHERE {_TAGS.format(of=of)} ORDER BY term"
    return f"UPDATE kernels SET tags = (SELECT json_group_array(tag) FROM ({tags})) WHERE {kernels};"


def _sqlite(name: str, when: str, body: str) -> str:
    return f"CREATE TRIGGER {name} AFTER {when} BEGIN {body} END"


_SQLITE = [
    _sqlite("kernels_found", "INSERT ON kernels", f"{_INSERTED} {_sqlite_tags('NEW', 'id = NEW.id')}"),
    _sqlite("kernels_changed", f"UPDATE OF {_CHANGING} ON kernels", _CHANGED),
    _sqlite(
        "blueprint_terms_added",
        "INSERT ON blueprint_terms",
        f"{_ADDED} INSERT OR IGNORE{_PAIRED.format(least='min', greatest='max')};"
        f" {_sqlite_tags('NEW', 'blueprint_id = NEW.blueprint_id')}",
    ),
    _sqlite(
        "blueprint_terms_removed",
        "DELETE ON blueprint_terms",
        f"{_REMOVED} {_sqlite_tags('OLD', 'blueprint_id = OLD.blueprint_id')}",
    ),
]


def _postgres_tags(of: str) -> str:
    tags = f"SELECT json_agg(substr(term, 2) ORDER BY term) FROM blueprint_terms WHERE {_TAGS.format(of=of)}"
    return f"COALESCE(({tags}), '[]')"


def _tagged(of: str) -> str:
    return (
        f"IF {of}.term < '$' THEN"
        f" UPDATE kernels SET tags = {_postgres_tags(of)} WHERE blueprint_id = {of}.blueprint_id; END IF; RETURN NULL;"
    )


_FUNCTIONS = {
    "esper_kernel_before": (
        "BEFORE INSERT ON kernels",
        "PERFORM 1 FROM blueprints WHERE id = NEW.blueprint_id FOR NO KEY UPDATE;"
        f" NEW.tags := {_postgres_tags('NEW')}; RETURN NEW;",
    ),
    "esper_kernel_found": ("AFTER INSERT ON kernels", f"{_INSERTED} RETURN NULL;"),
    "esper_kernel_changed": (f"AFTER UPDATE OF {_CHANGING} ON kernels", f"{_CHANGED} RETURN NULL;"),
    "esper_term_added": (
        "AFTER INSERT ON blueprint_terms",
        f"{_ADDED} INSERT{_PAIRED.format(least='LEAST', greatest='GREATEST')} ON CONFLICT DO NOTHING; {_tagged('NEW')}",
    ),
    "esper_term_removed": ("AFTER DELETE ON blueprint_terms", f"{_REMOVED} {_tagged('OLD')}"),
}
"""By name: when it runs, and what it does."""

_POSTGRESQL = [
    statement
    for name, (when, body) in _FUNCTIONS.items()
    for statement in (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        f"CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION {name}()",
    )
]
