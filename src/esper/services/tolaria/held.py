"""A whole state of a run that can be put back."""

from dataclasses import dataclass
from typing import Any

from esper.kasmina import Seed
from esper.services.tolaria.record import Position
from esper.services.tolaria.snapshot import Snapshot


@dataclass(frozen=True)
class Book:
    """Where the run stood; kept beside the snapshot of the training."""

    position: Position
    seeds: tuple[Seed, ...]


@dataclass(frozen=True)
class Held:
    """A whole state that can be put back: the training, and where the run stood.

    Attributes:
        training: The training.
        book: Where the run stood.
        topology_version: The model's shape then; it fits no other.
    """

    training: Snapshot
    book: Book
    topology_version: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data and tensors."""
        return {
            "training": self.training.to_dict(),
            "position": self.book.position.to_dict(),
            "seeds": [seed.to_dict() for seed in self.book.seeds],
            "topology_version": self.topology_version,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Held":
        """Read what ``to_dict`` returned."""
        book = Book(Position.from_dict(data["position"]), tuple(Seed.from_dict(seed) for seed in data["seeds"]))
        return cls(Snapshot.from_dict(data["training"]), book, data["topology_version"])
