"""Every stream of the bus, declared once."""

from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from pydantic import BaseModel

from esper.contracts.adaptation import AdaptationDecision, Outcome
from esper.contracts.events import BlueprintSubmitted, CompilationEvent, EpochEvent
from esper.contracts.health import HealthBatch

Message: TypeAlias = msgspec.Struct | BaseModel | dict[str, object]


@dataclass(frozen=True)
class Topic:
    """One stream.

    Attributes:
        stream: Its name.
        model: Contract of its messages.
        version: Version of that contract.
        writers: Parts that publish to it.
        readers: Parts that consume it.
        max_length: Messages kept before the oldest are trimmed.
        lossy: Whether the oldest message may be dropped, and counted, when a reader falls behind; otherwise the writer waits.
    """

    stream: str
    model: type[msgspec.Struct] | type[BaseModel]
    version: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    max_length: int = 10_000
    lossy: bool = False

    @property
    def retention(self) -> str:
        """What is kept, and who gives way where a reader falls behind."""
        if self.lossy:
            return f"newest {self.max_length:,}; a slow reader loses the oldest, counted"
        return f"newest {self.max_length:,}; a slow reader makes the writer wait"

    def to_json(self) -> dict[str, object]:
        """Return the topic as an object for JSON."""
        return {
            "stream": self.stream,
            "model": self.model.__name__,
            "version": self.version,
            "writers": list(self.writers),
            "readers": list(self.readers),
            "max_length": self.max_length,
            "lossy": self.lossy,
        }


HEALTH = Topic("telemetry.seed.health", HealthBatch, 1, ("tolaria",), ("tamiyo", "nissa"), lossy=True)
DECISIONS = Topic("control.adaptation.decision", AdaptationDecision, 1, ("tamiyo",), ("tolaria", "nissa"))
SUBMITTED = Topic("blueprints.submitted", BlueprintSubmitted, 1, ("urza",), ("tezzeret",))
EPOCHS = Topic("system.events.epoch", EpochEvent, 1, ("tolaria",), ("nissa",))
OUTCOMES = Topic("innovation.field_reports", Outcome, 1, ("tolaria",), ("urza", "tamiyo", "nissa"))
COMPILATIONS = Topic("compilation.events", CompilationEvent, 1, ("tezzeret",), ("nissa",))

TOPICS: dict[str, Topic] = {t.stream: t for t in (HEALTH, DECISIONS, SUBMITTED, EPOCHS, OUTCOMES, COMPILATIONS)}
