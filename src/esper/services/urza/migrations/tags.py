"""Triggers of revision 0002, by which kernels had the tags of their blueprints; 0003 has terms in their place."""


def triggers(dialect: str) -> list[str]:
    """Return the statements that make the triggers by which kernels have the tags of their blueprints."""
    return _POSTGRESQL if dialect == "postgresql" else _SQLITE


def without_triggers(dialect: str) -> list[str]:
    """Return the statements that take them away."""
    if dialect == "postgresql":
        return [f"DROP FUNCTION {name}() CASCADE" for name in _FUNCTIONS]
    return [f"DROP TRIGGER {statement.split()[2]}" for statement in _SQLITE]


_NAMES = ("status", "rank", "target_device", "latency_ms", "size_bytes", "num_params")
_COPIED = ", ".join(_NAMES)
_LISTED = f"kernel_id, tag, {_COPIED}"
_OF_NEW = ", ".join(f"NEW.{name}" for name in _NAMES)
_SET_TO_NEW = ", ".join(f"{name} = NEW.{name}" for name in _NAMES)
_CHANGING = "status, throughput, target_device, latency_ms, size_bytes, num_params"
_TAGGED = (
    f"INSERT INTO kernel_tags ({_LISTED})"
    f" SELECT NEW.id, tag, {_OF_NEW} FROM blueprint_tags WHERE blueprint_id = NEW.blueprint_id;"
)
_RANKED = f"UPDATE kernel_tags SET {_SET_TO_NEW} WHERE kernel_id = NEW.id;"
_ADDED = (
    f"INSERT INTO kernel_tags ({_LISTED})"
    f" SELECT id, NEW.tag, {_COPIED} FROM kernels WHERE blueprint_id = NEW.blueprint_id;"
)
_REMOVED = (
    "DELETE FROM kernel_tags"
    " WHERE tag = OLD.tag AND kernel_id IN (SELECT id FROM kernels WHERE blueprint_id = OLD.blueprint_id);"
)

_SQLITE = [
    f"CREATE TRIGGER kernels_tagged AFTER INSERT ON kernels BEGIN {_TAGGED} END",
    f"CREATE TRIGGER kernels_ranked AFTER UPDATE OF {_CHANGING} ON kernels BEGIN {_RANKED} END",
    f"CREATE TRIGGER blueprint_tags_added AFTER INSERT ON blueprint_tags BEGIN {_ADDED} END",
    f"CREATE TRIGGER blueprint_tags_removed AFTER DELETE ON blueprint_tags BEGIN {_REMOVED} END",
]

# A kernel and a tag that are added at the same time would each not see the other.
_LOCK = "PERFORM 1 FROM blueprints WHERE id = NEW.blueprint_id FOR NO KEY UPDATE;"
_FUNCTIONS = {
    "esper_kernel_tags": ("kernels_tagged AFTER INSERT ON kernels", f"{_LOCK} {_TAGGED}"),
    "esper_kernel_rank": (f"kernels_ranked AFTER UPDATE OF {_CHANGING} ON kernels", _RANKED),
    "esper_tag_added": ("blueprint_tags_added AFTER INSERT ON blueprint_tags", f"{_LOCK} {_ADDED}"),
    "esper_tag_removed": ("blueprint_tags_removed AFTER DELETE ON blueprint_tags", _REMOVED),
}
_POSTGRESQL = [
    statement
    for name, (trigger, body) in _FUNCTIONS.items()
    for statement in (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$",
        f"CREATE TRIGGER {trigger} FOR EACH ROW EXECUTE FUNCTION {name}()",
    )
]
