"""Weights & Biases; ``WANDB_MODE=offline`` and its other variables work as everywhere."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import wandb

from esper.services.tolaria.events import GrowthEvent


class WandbLogger:
    """Logs metrics, and growth events as rows of a table.

    Args:
        folder: Where wandb keeps the run's files.
        run_id: Name of the run.
        options: Further arguments of ``wandb.init``, such as ``project`` and ``mode``.
    """

    def __init__(self, folder: str | PathLike[str], *, run_id: str = "", **options: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        arguments = {"project": "esper", "name": run_id or None, "dir": str(folder), "reinit": "create_new", **options}
        self._run = wandb.init(**arguments)
        self._events: list[list[object]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics; after a rollback steps come again, so that the step is a metric of its own."""
        self._run.log({**metrics, "step": step})

    def event(self, event: GrowthEvent) -> None:
        """Log a growth event."""
        self._events.append([event.step, event.kind.value, event.slot, event.blueprint, str(event)])
        self._run.log({f"growth/{event.kind.value}": len(self._events), "step": event.step})

    def close(self) -> None:
        """Log the table of events and end the run."""
        if self._events:
            columns: list[str | int] = ["step", "kind", "slot", "blueprint", "text"]
            self._run.log({"growth/events": wandb.Table(columns=columns, data=self._events)})
        self._run.finish()
