"""Hosts of tests are tiny: more threads only get in each other's way."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.laws.training import stock


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Run torch on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs with a library that has every kernel of the zoo."""
    return stock(tmp_path_factory.mktemp("runs"))
