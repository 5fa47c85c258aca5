"""The manifest of a checkpoint: what is in the folder, and by which digests it is known.

Version 1: see docs/checkpoints.md.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esper.services.tolaria.checkpoint.sealed import damaged, read_sealed, sealed
from esper.services.tolaria.checkpoint.tensors import Written

FILE = "manifest.json"
FORMAT = "esper-checkpoint"
VERSION = 1


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
        return sealed(FORMAT, VERSION, {**asdict(self), "metric": _metric_text(self.metric)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ContractError: If it is missing, too large, damaged, or of a version that is not known.
    """
    path = folder / FILE
    body = read_sealed(path, FORMAT, VERSION)
    try:
        files = {name: Written(**file) for name, file in body.pop("files").items()}
        metric = body.pop("metric")
        return Manifest(files=files, metric=None if metric is None else float(metric), **body)
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise damaged(path, f"its entries are not those of version {VERSION}: {wrong}") from wrong


def _metric_text(metric: float | None) -> float | str | None:
    finite = metric is None or metric - metric == 0
    return metric if finite else repr(metric)
