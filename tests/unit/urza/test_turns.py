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
