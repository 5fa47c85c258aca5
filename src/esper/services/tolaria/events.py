"""What happened while a model grew: the event log, append-only, never restored by a rollback."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from esper.contracts.adaptation import Reason
from esper.contracts.ids import new_id
from esper.kasmina.quiet import preserved_rng


class EventKind(StrEnum):
    """What an event tells of."""

    INCUBATING = "incubating"
    GRAFTED = "grafted"
    KEPT = "kept"
    CULLED = "culled"
    ROLLED_BACK = "rolled_back"
    DIVERGED = "diverged"
    CANCELLED = "cancelled"
    LATE = "late"
    UNASKED = "unasked"
    NOTHING = "nothing"


@dataclass(frozen=True)
class GrowthEvent:
    """One thing that happened to the model.

    Attributes:
        step: Optimizer step.
        kind: What happened.
        why: The reason, in one line, with its numbers.
        slot: Name of the slot, or empty.
        seed_idx: Index of the seed in the slot.
        blueprint: Name of the blueprint, or empty.
        kernel_id: Content address of the kernel, or empty.
        decision_id: The decision behind it, or empty.
        added_params: Parameters that the graft adds.
        added_ratio: The same as a share of the host's.
        gain: Fall of the mean held-out loss over the evaluation, or None.
        gain_error: One spread of the same over graft-free windows, or None.
        kept: Whether the graft stayed; None while that is open.
        evidence: The reasons in numbers.
        event_id: Names the event.
    """

    step: int
    kind: EventKind
    why: str
    slot: str = ""
    seed_idx: int = 0
    blueprint: str = ""
    kernel_id: str = ""
    decision_id: str = ""
    added_params: int = 0
    added_ratio: float = 0.0
    gain: float | None = None
    gain_error: float | None = None
    kept: bool | None = None
    evidence: tuple[Reason, ...] = ()
    event_id: str = field(default_factory=lambda: new_id("event"))

    def __str__(self) -> str:
        what = "nothing grows" if self.kind is EventKind.NOTHING else self.kind.value.replace("_", " ")
        thing = f" {self.blueprint} at {self.slot}" if self.slot else ""
        size = f" (+{100 * self.added_ratio:.1f} % params)" if self.kind is EventKind.GRAFTED else ""
        return f"step {self.step}: {what}{thing}{size}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON-able data."""
        evidence = [reason.model_dump() for reason in self.evidence]
        return {**asdict(self), "kind": self.kind.value, "evidence": evidence}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "GrowthEvent":
        """Read what ``to_json`` wrote."""
        evidence = tuple(Reason(**reason) for reason in data["evidence"])
        return cls(**{**data, "kind": EventKind(data["kind"]), "evidence": evidence})


class EventLog:
    """Events in order, in memory and as JSON lines in a file.

    Args:
        path: The file, or None where another process writes it.
        watched: Context in which the file is written, as training waits for it.
    """

    def __init__(self, path: Path | None, watched: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._path, self._watched = path, watched
        self._events: list[GrowthEvent] = []
        self._waiting: list[str] = []

    def __iter__(self) -> Iterator[GrowthEvent]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: int) -> GrowthEvent:
        return self._events[index]

    def append(self, event: GrowthEvent) -> GrowthEvent:
        """Add an event; it is on the file when this returns, or, where the disk fails, with the next one that can be written."""
        self._events.append(event)
        if self._path is not None:
            self._waiting.append(json.dumps(event.to_json(), separators=(",", ":")) + "\n")
            with self._watched():
                self._write(self._path)
        return event

    @property
    def unwritten(self) -> int:
        """Events that are not on the file, because the disk fails."""
        return len(self._waiting)

    def _write(self, path: Path) -> None:
        size = 0
        try:
            size = path.stat().st_size if path.exists() else 0
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
            self._waiting = []
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, size)  # half a line would spoil the next
            self._warn(path, error)

    def _warn(self, path: Path, error: OSError) -> None:
        with preserved_rng():  # what the log imports may draw, as rich does
            from esper.telemetry.logs import get_logger

        get_logger("tolaria.events").warning(
            "event_not_written", path=str(path), why=str(error), waiting=self.unwritten
        )

    def extend(self, events: list[GrowthEvent]) -> None:
        """Add events of an earlier part of the run; those that are here already are passed over."""
        known = {event.event_id for event in self._events}
        for event in events:
            if event.event_id not in known:
                self.append(event)
