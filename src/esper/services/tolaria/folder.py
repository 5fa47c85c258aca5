"""Where a run writes: its folder, its event log, its manifest."""

import json
import os
from pathlib import Path
from typing import Any

from esper.errors import ConfigError

MANIFEST_VERSION = 1


class RunFolder:
    """The folder of one run, below the root that the user gave.

    Args:
        root: Folder for all runs.
        run_id: Name of this one.

    Raises:
        ConfigError: If it cannot be made or written.
    """

    def __init__(self, root: str | os.PathLike[str], run_id: str) -> None:
        self.run_id = run_id
        self.path = Path(root) / run_id
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "events.jsonl").touch()
        except OSError as error:
            raise ConfigError(
                f"the run's folder {self.path} cannot be written",
                why=str(error),
                todo="give attach a root= that this user may write",
                code="ESP-2140",
            ) from error

    @property
    def events(self) -> Path:
        """The event log, one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def manifest(self) -> Path:
        """What is grafted now, version 1."""
        return self.path / "growth.json"

    def write_manifest(self, content: dict[str, Any]) -> None:
        """Replace the manifest, whole or not at all."""
        aside = self.manifest.with_suffix(".tmp")
        aside.write_text(json.dumps({"version": MANIFEST_VERSION, **content}, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.manifest)
