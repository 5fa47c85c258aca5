"""Write what is made from the contracts of the bus: ``docs/topics.md`` and the JSON Schemas in ``contracts/schemas``.

    python -m tools.contracts          write them
    python -m tools.contracts --check  exit with 1 where one is not what the contracts give

A schema that lies there already is replaced only by one that reads all that the old one read. Every other change needs a new
version of the contract, and the schema of the old version stays.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel

from esper.contracts.envelope import DeadLetter, Envelope
from esper.contracts.topics import TOPICS

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "contracts" / "schemas"
PAGE = ROOT / "docs" / "topics.md"

MODELS: dict[str, tuple[type[msgspec.Struct] | type[BaseModel], int]] = {
    **{topic.model.__name__: (topic.model, topic.version) for topic in TOPICS.values()},
    "Envelope": (Envelope, 1),
    "DeadLetter": (DeadLetter, 1),
}

Schema = dict[str, Any]

_WORDS = frozenset({"title", "description", "default"})
"""What a schema says to people only, or to a writer."""

_HEAD = """# Topics

<!-- Made by python -m tools.contracts from esper.contracts.topics; do not edit. -->

Every stream of the bus. `esper bus topics` prints the same table, with `--json` for programs.

"""

_TAIL = """
A message lies in an envelope of msgpack: `type` and `version` of its contract, `id`, `run_id`, `sent_at`, `traceparent`, and the
encoded `body`. JSON Schemas of the envelope and of every contract are in [contracts/schemas](../contracts/schemas).

Within a version a contract only gains fields that have a default. A sender is refused a field that its contract does not know;
a reader passes it over, so that a part may be older than the one that writes to it. Every other change is a new version.

A message that no try could deliver lies in the stream `{stream}.dead` as a `DeadLetter`, with the reason and the message as it
was sent.
"""


def schema(name: str) -> Schema:
    """Return the JSON Schema of a contract's present version."""
    model, _ = MODELS[name]
    found = model.model_json_schema() if issubclass(model, BaseModel) else msgspec.json.schema(model)
    return {key: _dedented(value) for key, value in found.items()}


def _dedented(part: object) -> object:
    """Return a part of a schema with docstrings as every release of Python gives them."""
    if isinstance(part, dict):
        plain = {key: _dedented(value) for key, value in part.items()}
        about = plain.get("description")
        return {**plain, "description": inspect.cleandoc(about)} if isinstance(about, str) else plain
    return [_dedented(value) for value in part] if isinstance(part, list) else part


def path_of(name: str) -> Path:
    """Return where the schema of a contract's present version lies."""
    return SCHEMAS / f"{name}-{MODELS[name][1]}.json"


def text_of(found: Schema) -> str:
    """Return a schema as it lies in its file."""
    return json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def page() -> str:
    """Return the documentation of the topics."""
    rows = ["| stream | message | version | writers | readers | kept |", "|---|---|---|---|---|---|"]
    for topic in TOPICS.values():
        about = (topic.model.__doc__ or "").partition("\n")[0]
        cells = (
            f"`{topic.stream}`",
            f"[`{topic.model.__name__}`](../contracts/schemas/{path_of(topic.model.__name__).name}): {about}",
            str(topic.version),
            ", ".join(topic.writers),
            ", ".join(topic.readers),
            topic.retention,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(rows) + "\n" + _TAIL


def breaking(old: Schema, new: Schema) -> Iterator[str]:
    """Yield each way in which a schema is more than its predecessor with further fields that have a default."""
    before, after = _objects(old), _objects(new)
    for name, parts in before.items():
        if name not in after:
            yield f"{name} is gone"
            continue
        fields = after[name].get("properties", {})
        for field, kind in parts.get("properties", {}).items():
            if field not in fields:
                yield f"{name}.{field} is gone"
            elif _bare(kind) != _bare(fields[field]):
                yield f"{name}.{field} is of another kind"
        yield from (
            f"{name}.{field} is required now"
            for field in sorted(set(after[name].get("required", ())) - set(parts.get("required", ())))
        )
        if parts.get("enum") != after[name].get("enum"):
            yield f"{name} has other values"


def _objects(found: Schema) -> dict[str, Schema]:
    root = {"$": found} if "properties" in found else {}
    return {**found.get("$defs", {}), **root}


def _bare(kind: object) -> object:
    if isinstance(kind, dict):
        return {key: _bare(value) for key, value in kind.items() if key not in _WORDS}
    return [_bare(value) for value in kind] if isinstance(kind, list) else kind


def made() -> dict[Path, str]:
    """Return every file that is made from the contracts."""
    return {PAGE: page(), **{path_of(name): text_of(schema(name)) for name in MODELS}}


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or check them; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.contracts", description="Write docs and schemas of the bus.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something differs")
    check = parser.parse_args(arguments).check
    files = made()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    faults = [fault for path in stale for fault in _faults(path, files[path])]
    for line in faults or [str(path.relative_to(ROOT)) for path in stale]:
        print(line)
    if faults or (check and stale):
        return 1
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    return 0


def _faults(path: Path, text: str) -> list[str]:
    if path.suffix != ".json" or not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    return [f"{path.name}: {fault}; give the contract a new version" for fault in breaking(old, json.loads(text))]


if __name__ == "__main__":
    sys.exit(main())
