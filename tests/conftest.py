"""Models of tests are tiny: more threads only get in each other's way."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A busy machine makes single examples slow; pytest's own limit stays.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the device of the accelerator tests be chosen."""
    parser.addoption("--device", default="cuda", help="device of tests marked gpu (default cuda)")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Run torch on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
