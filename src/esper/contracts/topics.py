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
        durable: Whether a journal keeps its messages. What is said again anyway, or only wakes somebody, is not worth a disk.
    """

    stream: str
    model: type[msgspec.Struct] | type[BaseModel]
    version: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    max_length: int = 10_000
    lossy: bool = False
    durable: bool = True

    @property
    def retention(self) -> str:
        """What is kept, who gives way where a reader falls behind, and whether a journal keeps it."""
        slow = "loses the oldest, counted" if self.lossy else "makes the writer wait"
        journal = "; journaled" if self.durable else ""
        return f"newest {self.max_length:,}; a slow reader {slow}{journal}"

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
            "durable": self.durable,
        }


HEALTH = Topic("telemetry.seed.health", HealthBatch, 1, ("tolaria",), ("tamiyo", "nissa"), lossy=True, durable=False)
DECISIONS = Topic("control.adaptation.decision", AdaptationDecision, 1, ("tamiyo",), ("tolaria", "nissa"))
SUBMITTED = Topic("blueprints.submitted", BlueprintSubmitted, 1, ("urza",), ("tezzeret",), durable=False)
EPOCHS = Topic("system.events.epoch", EpochEvent, 1, ("tolaria",), ("nissa",))
OUTCOMES = Topic("innovation.field_reports", Outcome, 1, ("tolaria",), ("urza", "tamiyo", "nissa"))
COMPILATIONS = Topic("compilation.events", CompilationEvent, 1, ("urza", "tezzeret"), ("nissa",), durable=False)

TOPICS: dict[str, Topic] = {t.stream: t for t in (HEALTH, DECISIONS, SUBMITTED, EPOCHS, OUTCOMES, COMPILATIONS)}
