"""Whoever is cancelled while they write leaves no lock behind."""

import asyncio
import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from esper.services.urza.database import Database, prepare, sqlite_engine
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.sqlite_driver import OneHopConnection
from esper.testing.forging import adapter, request_for


async def test_a_transaction_that_has_begun_ends_whole_though_its_caller_is_cancelled(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "library.db")
    await prepare(engine)
    database = Database(engine)
    begun, gate = asyncio.Event(), asyncio.Event()

    async def work(session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE notes (note TEXT)"))
        begun.set()
        await gate.wait()
        await session.execute(text("INSERT INTO notes VALUES ('kept')"))

    caller = asyncio.create_task(database.transact(work))
    await begun.wait()
    caller.cancel()
    await asyncio.sleep(0.01)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with asyncio.timeout(2), database.writing() as session:
        assert (await session.execute(text("SELECT note FROM notes"))).scalars().all() == ["kept"]
    await engine.dispose()


async def test_a_transaction_in_a_thread_ends_whole_though_its_caller_is_cancelled(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "library.db")
    await prepare(engine)
    database = Database(engine)
    begun, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(session: Session) -> None:
        session.execute(text("CREATE TABLE notes (note TEXT)"))
        loop.call_soon_threadsafe(begun.set)
        assert gate.wait(30)
        session.execute(text("INSERT INTO notes VALUES ('kept')"))

    caller = asyncio.create_task(database.apply(work))
    await begun.wait()
    caller.cancel()
    await asyncio.sleep(0.01)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    async with asyncio.timeout(2), database.writing() as session:
        assert (await session.execute(text("SELECT note FROM notes"))).scalars().all() == ["kept"]
    await database.close()
    await engine.dispose()


async def test_an_error_that_nobody_waits_for_any_more_is_quiet(tmp_path: Path) -> None:
    engine = sqlite_engine(tmp_path / "library.db")
    await prepare(engine)
    begun = asyncio.Event()

    async def work(session: AsyncSession) -> None:
        begun.set()
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    caller = asyncio.create_task(Database(engine).transact(work))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await engine.dispose()


async def test_a_connection_that_nobody_gave_back_is_closed_with_the_library(tmp_path: Path) -> None:
    library = await KernelManager.open(tmp_path)
    assert library._engine is not None
    held = await library._engine.connect()
    driver = (await held.get_raw_connection()).driver_connection
    assert isinstance(driver, OneHopConnection)
    await library.close()
    with pytest.raises(ValueError, match="no active connection"):
        await driver.commit()
    await held.close()


@pytest.mark.slow
def test_submissions_cancelled_at_any_moment_keep_no_lock(tmp_path: Path) -> None:
    """Each round has an event loop of its own that ends at once, as a run does that is closed while it asks for kernels."""

    async def cut_short(after_s: float) -> None:
        async with await KernelManager.open(tmp_path) as library:
            submissions = [
                asyncio.create_task(library.submit(request_for(adapter(width=width)))) for width in range(1, 20)
            ]
            await asyncio.sleep(after_s)
            for submission in submissions:
                submission.cancel()
            await asyncio.gather(*submissions, return_exceptions=True)
            async with asyncio.timeout(5):
                await library.submit(request_for(adapter(width=99)))

    for round_ in range(12):
        asyncio.run(cut_short(0.004 * round_))
