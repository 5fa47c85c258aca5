"""Training data in an order that can be gone back to: mid-epoch, with workers, to the very batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from esper.errors import ConfigError
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.trainer.drawing import Draw, DrawnData, mixed
from esper.services.tolaria.trainer.sharing import Dealt, Part, Shared, Whole


class Feed(Protocol):
    """Batches without end, epoch after epoch.

    Attributes:
        epoch: Passes over the data that were begun and ended.
        position: Batches given in this pass; equal to the length where the pass is over.
        weight: Of the last batch's mean loss in the mean over processes.
    """

    epoch: int
    position: int
    weight: float

    def __len__(self) -> int:
        """Return the batches of a pass."""
        ...

    def next(self) -> Any:
        """Return the next batch; the next pass begins where one is over."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where another stood."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How batches are made.

    Attributes:
        data: Examples by index.
        order: Which of them come in which batch of an epoch.
        like: The loader whose workers, collation and memory pinning are taken over.
        batched: Whether a batch is made of several examples.
    """

    data: Any
    order: Whole | Shared | Dealt
    like: DataLoader[Any]
    batched: bool = True

    def loader(self, draws: "Draws") -> DataLoader[Any]:
        """Return a loader of these batches; it takes nothing from the global generators."""
        like = self.like
        workers: dict[str, Any] = {
            "persistent_workers": like.persistent_workers,
            "prefetch_factor": like.prefetch_factor,
        }
        return DataLoader(
            DrawnData(self.data, like.collate_fn, batched=self.batched),  # type: ignore[arg-type]
            batch_sampler=draws,  # type: ignore[arg-type]
            collate_fn=_itself, num_workers=like.num_workers, pin_memory=like.pin_memory, timeout=like.timeout,
            worker_init_fn=like.worker_init_fn, multiprocessing_context=like.multiprocessing_context,
            generator=torch.Generator().manual_seed(draws.seed), **(workers if like.num_workers else {}),
        )  # fmt: skip


class Draws:
    """The batches of one epoch that are still to come.

    Args:
        order: Which examples come when.
        seed: Of everything that is drawn.

    Attributes:
        epoch: Which epoch.
        position: The batch it begins at.
        parts: All batches of the epoch, once it has begun.
    """

    def __init__(self, order: Whole | Shared | Dealt, seed: int) -> None:
        self.seed, self.epoch, self.position = seed, 0, 0
        self.parts: list[Part] = []
        self._order = order

    def __len__(self) -> int:
        return max(0, len(self._order) - self.position)

    def __iter__(self) -> Iterator[Draw]:
        self.parts = self._order.parts(self.seed, self.epoch)
        for part in self.parts[self.position :]:
            yield Draw(mixed(self.seed, self.epoch, part.number), part.indices)


class StatefulLoader:
    """A feed whose every batch is a function of seed, epoch and position, however many workers fetch it.

    Args:
        recipe: How batches are made.
        seed: Of their order and of what examples draw.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.epoch, self.position, self.weight = 0, 0, 1.0
        self._seed, self._length = seed, len(recipe.order)
        self._draws = Draws(recipe.order, seed)
        self._loader = recipe.loader(self._draws)
        self._coming: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self._length

    def next(self) -> Any:
        """Return the next batch; the next pass begins where one is over."""
        if self.position >= self._length:
            self.epoch, self.position, self._coming = self.epoch + 1, 0, None
        if self._coming is None:
            self._draws.epoch, self._draws.position = self.epoch, self.position
            self._coming = iter(self._loader)
        batch = next(self._coming)
        self.weight = self._draws.parts[self.position].weight
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands."""
        return {"epoch": self.epoch, "position": self.position, "seed": self._seed, "length": self._length}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where another stood.

        Raises:
            ConfigError: If that one had other data or another seed, so that its batches cannot be given here.
        """
        for name, here in (("seed", self._seed), ("length", self._length)):
            if state_dict[name] != here:
                raise ConfigError(
                    "the data of the saved run are other ones",
                    why=f"its {name} was {state_dict[name]}, here it is {here}",
                    todo="give the same data, batch size, held-out share and seed as the run that was saved",
                    code="ESP-2706",
                )
        self.epoch, self.position, self._coming = state_dict["epoch"], state_dict["position"], None


class Unmoved:
    """Held-out batches: the same in the same order, drawn with the same random numbers, each time they are iterated.

    Args:
        recipe: How batches are made.
        seed: Of what examples draw.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._loader = recipe.loader(Draws(recipe.order, seed))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


class Alternate:
    """Held-out batches of a loader that cannot be asked by index: each process measures every so-manieth.

    Args:
        batches: The same in every process, each time they are iterated.
        team: The processes.
    """

    def __init__(self, batches: Iterable[Any], team: Team) -> None:
        self._batches, self._team = batches, team

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._batches), self._team.rank, None, self._team.size)


class OwnFeed:
    """A feed from a loader that keeps its own place, as torchdata's ``StatefulDataLoader`` does.

    Args:
        loader: Has ``state_dict``, ``load_state_dict`` and a length.
    """

    def __init__(self, loader: Any) -> None:
        self.epoch, self.position, self.weight = 0, 0, 1.0
        self._loader = loader
        self._coming: Iterator[Any] | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def next(self) -> Any:
        """Return the next batch; the next pass begins where one is over."""
        if self.position >= len(self):
            self.epoch, self.position, self._coming = self.epoch + 1, 0, None
        if self._coming is None:
            self._coming = iter(self._loader)
        batch = next(self._coming)
        self.position += 1
        if self.position >= len(self):
            next(self._coming, None)  # it learns only so that its pass is over
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return where it and the loader stand."""
        return {"epoch": self.epoch, "position": self.position, "loader": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where another stood."""
        self._loader.load_state_dict(state_dict["loader"])
        self.epoch, self.position, self._coming = state_dict["epoch"], state_dict["position"], None


def _itself(batch: Any) -> Any:
    return batch
