"""Batches shared out among processes: each has equally many, and together they have what one process would have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from esper.services.tolaria.distributed.team import Team


class Order(Protocol):
    """Which examples come in which batch of an epoch."""

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        ...

    def epoch(self, seed: int, epoch: int) -> Sequence[Any]:
        """Return the batches of an epoch."""
        ...


@dataclass(frozen=True)
class Part:
    """What one process has of a round of batches.

    Attributes:
        indices: Its examples.
        number: Of this batch in the epoch; no other process has that number.
        weight: Of its mean loss in the mean over processes, so that every example of the round counts alike.
    """

    indices: Any
    number: int
    weight: float = 1.0


class Whole:
    """An order of which one process has everything; or one that was shared out already.

    Args:
        order: The order.
        team: The processes, where each has an order of its own.
    """

    def __init__(self, order: Order, team: Team | None = None) -> None:
        self._order, self._team = order, team or Team()

    def __len__(self) -> int:
        return len(self._order)

    def parts(self, seed: int, epoch: int) -> list[Part]:
        """Return the batches of an epoch."""
        size, rank = self._team.size, self._team.rank
        return [Part(batch, at * size + rank) for at, batch in enumerate(self._order.epoch(seed, epoch))]


class Shared:
    """An order that is the same in every process, dealt out in rounds of one batch each.

    A last round with too few batches is split anew, as evenly as can be; a process for which there is no example then takes one
    that another has too, with weight 0, so that all take equally many steps.

    Args:
        order: Of all processes together.
        team: The processes.
        batched: Whether a batch has several examples, and can be split.
        drop_last: Whether a last round that is not full is left out.
    """

    def __init__(self, order: Order, team: Team, *, batched: bool, drop_last: bool) -> None:
        self._order, self._team, self._batched, self._drop_last = order, team, batched, drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self._order), self._team.size)
        return full + (rest > 0 and not self._drop_last)

    def parts(self, seed: int, epoch: int) -> list[Part]:
        """Return this process's batches of an epoch."""
        batches, size = self._order.epoch(seed, epoch), self._team.size
        return [self._part(batches[at * size : (at + 1) * size], at) for at in range(len(self))]

    def _part(self, batches: Sequence[Any], at: int) -> Part:
        rank, size = self._team.rank, self._team.size
        number = at * size + rank
        if not self._batched:
            own = rank < len(batches)
            return Part(batches[rank if own else 0], number, size / len(batches) if own else 0.0)
        examples = [index for batch in batches for index in batch]
        if len(batches) < size:
            batches = [examples[r * len(examples) // size : (r + 1) * len(examples) // size] for r in range(size)]
        own_part = batches[rank]
        return Part(own_part or examples[:1], number, len(own_part) * size / len(examples))


class Dealt:
    """Held-out batches of which each process has every so-manieth example, and all together each example once.

    Args:
        order: The same in every process.
        team: The processes.
        batched: Whether a batch has several examples.
    """

    def __init__(self, order: Order, team: Team, *, batched: bool) -> None:
        self._order, self._team, self._batched = order, team, batched

    def __len__(self) -> int:
        return len(self._order)

    def parts(self, seed: int, epoch: int) -> list[Part]:
        """Return this process's batches."""
        rank, size = self._team.rank, self._team.size
        numbered = [Part(batch, at) for at, batch in enumerate(self._order.epoch(seed, epoch))]
        if not self._batched:
            return numbered[rank::size]
        own = [Part(list(part.indices)[rank::size], part.number * size + rank) for part in numbered]
        return [part for part in own if part.indices]
