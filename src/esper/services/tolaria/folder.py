"""Where a run writes: its folder, its event log, its manifest."""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

from esper.runtime.files import own_folder

MANIFEST_VERSION = 1


class RunFolder:
    """The folder of one run, below the root that the user gave.

    Args:
        root: Folder for all runs.
        run_id: Name of this one.
        writes: Whether this process writes there; of several only the one that leads does.

    Raises:
        ConfigError: If it cannot be made or written.
    """

    def __init__(self, root: str | os.PathLike[str], run_id: str, *, writes: bool = True) -> None:
        self.run_id, self.writes = run_id, writes
        path = Path(root) / run_id
        self.path = own_folder(path) if writes else path
        self._in_turn, self._one_at_a_time = asyncio.Lock(), threading.Lock()

    @property
    def events(self) -> Path:
        """The event log, one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def manifest(self) -> Path:
        """What is grafted now, version 1."""
        return self.path / "growth.json"

    def write_manifest(self, content: dict[str, Any]) -> None:
        """Replace the manifest, whole or not at all; it is not forced to the disk, as training would wait for that."""
        if not self.writes:
            return
        aside = self.manifest.with_suffix(".tmp")
        with self._one_at_a_time:
            aside.write_text(json.dumps({"version": MANIFEST_VERSION, **content}, indent=1) + "\n", encoding="utf-8")
            aside.replace(self.manifest)

    async def written(self, content: dict[str, Any]) -> None:
        """Do the same beside the background loop, in the order asked for: neither training nor its services wait for a disk."""
        async with self._in_turn:
            await asyncio.to_thread(self.write_manifest, content)
