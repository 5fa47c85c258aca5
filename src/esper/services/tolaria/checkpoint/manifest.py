"""The manifest of a checkpoint: what is in the folder, and by which digests it is known.

Version 1: see docs/checkpoints.md.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esper.errors import ContractError
from esper.ir import digest_of
from esper.services.tolaria.checkpoint.tensors import Written

FILE = "manifest.json"
FORMAT = "esper-checkpoint"
VERSION = 1
MOST_BYTES = 16 * 2**20
"""A graft takes some kilobytes in the table; this holds thousands of them."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint without reading it.

    Attributes:
        serial: Counts the checkpoints of a folder, from 1; the newest has the highest.
        step: Of the training.
        metric: What it is compared by, or None.
        tag: What it was kept for, or empty.
        written_at: Date and time, UTC, in ISO 8601.
        files: The other files.
        grafts: The graft table, or None where the state has none.
    """

    serial: int
    step: int
    metric: float | None
    tag: str
    written_at: str
    files: dict[str, Written] = field(default_factory=dict)
    grafts: list[dict[str, Any]] | None = None

    def to_bytes(self) -> bytes:
        """Return the file's content; its last entry is the digest of the rest."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self), "metric": _metric_text(self.metric)}
        return _rendered({**body, "digest": digest_of(_rendered(body))})


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ContractError: If it is missing, too large, damaged, or of a version that is not known.
    """
    path = folder / FILE
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_BYTES else b""
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    if size > MOST_BYTES:
        raise damaged(path, f"it has {size} bytes, and none has more than {MOST_BYTES}")
    body = _parsed(path, data)
    if body.get("format") != FORMAT:
        raise damaged(path, "it is no manifest of a checkpoint")
    if body.get("version") != VERSION:
        raise ContractError(
            f"{path} has version {body.get('version')!r}",
            why=f"this version of Esper reads version {VERSION}",
            todo="open it with the version of Esper that wrote it, or a newer one",
            code="ESP-3310",
        )
    digest = body.pop("digest", None)
    if digest != digest_of(_rendered(body)) or data != _rendered({**body, "digest": digest}):
        raise damaged(path, "it is not what was written: its digest is another one")
    return _read(path, body)


def damaged(path: Path, why: str) -> ContractError:
    """Return the error of a file of a checkpoint that cannot be used."""
    return ContractError(
        f"{path} cannot be used",
        why=why,
        todo='load another checkpoint, such as "latest", which passes over damaged ones; then delete this folder',
        code="ESP-3300",
    )


def _read(path: Path, body: dict[str, Any]) -> Manifest:
    try:
        del body["format"], body["version"]
        files = {name: Written(**file) for name, file in body.pop("files").items()}
        metric = body.pop("metric")
        return Manifest(files=files, metric=None if metric is None else float(metric), **body)
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise damaged(path, f"its entries are not those of version {VERSION}: {wrong}") from wrong


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as wrong:
        raise damaged(path, f"it is no JSON: {wrong}") from wrong
    return body if isinstance(body, dict) else {}


def _metric_text(metric: float | None) -> float | str | None:
    finite = metric is None or metric - metric == 0
    return metric if finite else repr(metric)


def _rendered(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()
