"""Writers of one process pass in the order in which they came."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from esper.services.urza import sqlite_driver
from esper.services.urza.database import Database, engine_at, prepare
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, request_for

WRITERS = 60


async def test_no_writer_is_passed_over_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_driver, "BUSY_TIMEOUT_MS", 50)
    engine = engine_at(f"sqlite:///{tmp_path / 'library.db'}")
    await prepare(engine)
    library, passed = Database(engine), list[int]()

    async def write(number: int) -> None:
        def plain(session: Session) -> None:
            session.execute(text("select 1"))
            time.sleep(0.01)
            passed.append(number)

        async def awaited(session: AsyncSession) -> None:
            await session.execute(text("select 1"))
            await asyncio.sleep(0.01)
            passed.append(number)

        await (library.apply(plain) if number % 2 else library.transact(awaited))

    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    assert passed == list(range(WRITERS))
    await library.close()
    await engine.dispose()


async def test_a_crowd_that_submits_does_not_stand_in_the_way_of_the_forge(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path / "library") as manager:
        await manager.submit(request_for(adapter(1)))
        crowd = [asyncio.create_task(manager.submit(request_for(adapter(width)))) for width in range(2, 66)]
        await asyncio.sleep(0)
        assert await manager.claim("forge", lease_s=30.0) is not None
        assert sum(task.done() for task in crowd) < 16
        await asyncio.gather(*crowd)
