"""The run's own log: one JSON object per line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path


class JsonLines:
    """Appends metrics to a file, one line per step; a value that is not finite is written as its name.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line."""
        values = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}, separators=(",", ":")) + "\n")
