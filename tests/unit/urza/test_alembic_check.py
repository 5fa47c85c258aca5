"""``alembic check`` itself, as a shell calls it, on both databases: the models ask for nothing that no migration makes."""

import asyncio
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from esper.services.urza.database import engine_at, prepare
from esper.testing.postgres import PostgresServer

INI = files("esper.services.urza") / "migrations" / "alembic.ini"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a database with nothing in it, for a driver that waits."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'library.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url(server.new_database())


def alembic(url: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "alembic", "-c", str(INI), "-x", f"url={url}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_migrated_database_passes_and_an_older_one_does_not(empty_url: str) -> None:
    assert alembic(empty_url, "upgrade", "head").returncode == 0
    done = alembic(empty_url, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No new upgrade operations detected" in done.stdout
    assert alembic(empty_url, "downgrade", "-1").returncode == 0
    assert alembic(empty_url, "check").returncode != 0


def test_a_library_that_made_its_own_tables_passes(empty_url: str) -> None:
    async def prepared() -> None:
        engine = engine_at(empty_url)
        try:
            await prepare(engine)
        finally:
            await engine.dispose()

    asyncio.run(prepared())
    done = alembic(empty_url, "check")
    assert done.returncode == 0, done.stdout + done.stderr
