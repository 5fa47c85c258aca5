"""Models of tests are tiny: more threads only get in each other's way."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from esper.testing.servers import RedisServer

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


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Return a Redis of this session's own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    if not server.is_installed:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "there is no redis-server here; make servers installs one"
        )
    with server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Return the session's Redis, empty."""
    shared_redis.ask("FLUSHALL")
    return shared_redis
