"""Batches by number: which examples, drawn with which random numbers, is a function of seed, epoch and number alone."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

Indices = Sequence[Any]


@dataclass(frozen=True)
class Draw:
    """One batch that is asked for.

    Attributes:
        seed: Of whatever fetching its examples draws, such as augmentation.
        indices: Its examples.
    """

    seed: int
    indices: Any


def mixed(*parts: int | str) -> int:
    """Return a seed that differs wherever one of the parts does."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Seed what data pipelines draw from inside the block, and leave the generators as they were found."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class DrawnData:
    """A data set whose items are whole batches, each drawn under its own seed, here or in a worker alike.

    Args:
        data: Examples by index.
        collate: Makes a batch of them.
        batched: Whether a draw has several examples.
    """

    def __init__(self, data: Any, collate: Callable[[Any], Any], *, batched: bool) -> None:
        self._data, self._collate, self._batched = data, collate, batched

    def __len__(self) -> int:
        return len(self._data)

    def __getitems__(self, draw: Draw) -> Any:
        """Return one batch."""
        with drawing(draw.seed):
            return self._collate(self._examples(draw.indices))

    def _examples(self, indices: Any) -> Any:
        if not self._batched:
            return self._data[indices]
        together = getattr(self._data, "__getitems__", None)
        return together(list(indices)) if together else [self._data[index] for index in indices]


class Shuffled:
    """Examples in batches, in an order that is drawn anew for each epoch.

    Args:
        count: Examples.
        size: Examples in a batch.
        drop_last: Whether a last batch that is not full is left out.
        shuffle: Whether the order is drawn; otherwise it is that of the data.
    """

    def __init__(self, count: int, size: int, *, drop_last: bool, shuffle: bool) -> None:
        self._count, self._size, self._drop_last, self._shuffle = count, size, drop_last, shuffle

    def __len__(self) -> int:
        whole, rest = divmod(self._count, self._size)
        return whole + (rest > 0 and not self._drop_last)

    def epoch(self, seed: int, epoch: int) -> list[Indices]:
        """Return the batches of an epoch."""
        generator = torch.Generator().manual_seed(mixed(seed, epoch, "order"))
        order = torch.randperm(self._count, generator=generator).tolist() if self._shuffle else range(self._count)
        return [list(order[at * self._size : (at + 1) * self._size]) for at in range(len(self))]


class Sampled:
    """Batches as the sampler of the user's own loader gives them, drawn under a seed for each epoch.

    Args:
        loader: The user's.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._batches: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self._samplers: list[Any] = [self._batches, getattr(self._batches, "sampler", None), loader.sampler]

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, seed: int, epoch: int) -> list[Indices]:
        """Return the batches of an epoch."""
        number = mixed(seed, epoch, "order")
        for sampler in self._samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            if isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
                generator.manual_seed(number)
        with drawing(number):
            return list(islice(iter(self._batches), len(self)))
