"""Seeds and deterministic algorithms, for the length of a training only."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from esper.kasmina.quiet import preserved_rng
from esper.services.tolaria.trainer.drawing import mixed


def seed_all(seed: int) -> None:
    """Seed every global generator that a training may draw from."""
    random.seed(seed)
    torch.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)


def seed_of(seed: int, rank: int) -> int:
    """Return the seed of one process's generators: that of the run for the first, another one for each other."""
    return seed if rank == 0 else mixed(seed, rank, "rank")


@contextmanager
def seeded(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed the global generators inside the block, and put them and torch's settings back after it.

    Args:
        seed: Of all of them.
        deterministic: Whether torch uses deterministic algorithms only; an operation that has none raises.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    with preserved_rng():
        seed_all(seed)
        try:
            if deterministic:
                torch.use_deterministic_algorithms(True)
                torch.backends.cudnn.benchmark = False
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = benchmark
