"""Questions on connections of their own: few, used again, and none that somebody left in the middle."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Float, Integer, Select, bindparam, func, make_url, select, text

from esper.errors import StoreUnavailable
from esper.services.urza.reader import PostgresReader

CONNECTIONS = 2


@dataclass(frozen=True)
class Slept:
    """Asks for the process that answers, after so many seconds."""

    def statement(self, *, arrays: bool) -> Select[Any]:
        return select(func.pg_backend_pid(), func.pg_sleep(bindparam("seconds", type_=Float)))


@dataclass(frozen=True)
class Divided:
    """Asks what no number answers where the divisor is 0."""

    def statement(self, *, arrays: bool) -> Select[Any]:
        return select(1 / bindparam("divisor", type_=Integer), func.pg_backend_pid())


@dataclass(frozen=True)
class Ended:
    """Ends the process that another connection belongs to."""

    def statement(self, *, arrays: bool) -> Select[Any]:
        return select(func.pg_terminate_backend(bindparam("pid", type_=Integer), text("5000")))


@pytest.fixture
async def reader(postgres_url: str) -> AsyncIterator[PostgresReader]:
    reader = PostgresReader(make_url(postgres_url), connections=CONNECTIONS, timeouts_s=(5.0, 0.5, 1.0))
    yield reader
    await reader.close()


async def pid_of(reader: PostgresReader, seconds: float = 0.0) -> int:
    return int((await reader.rows(Slept(), {"seconds": seconds}))[0][0])


async def test_one_after_the_other_they_are_asked_on_one_connection(reader: PostgresReader) -> None:
    assert len({await pid_of(reader) for _ in range(5)}) == 1


async def test_no_more_connections_are_made_than_were_allowed(reader: PostgresReader) -> None:
    assert len(set(await asyncio.gather(*(pid_of(reader, 0.01) for _ in range(12))))) == CONNECTIONS


async def test_a_question_that_is_cut_short_leaves_no_connection_behind(reader: PostgresReader) -> None:
    for _ in range(3 * CONNECTIONS):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pid_of(reader, 0.5)
    assert len(set(await asyncio.gather(*(pid_of(reader, 0.01) for _ in range(6))))) == CONNECTIONS


async def test_an_answer_that_takes_too_long_is_an_outage_and_the_next_one_comes(reader: PostgresReader) -> None:
    with pytest.raises(StoreUnavailable):
        await pid_of(reader, 3.0)
    assert await pid_of(reader)


async def test_who_waits_too_long_for_a_connection_is_told(reader: PostgresReader) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(pid_of(reader, 0.9))
        await asyncio.sleep(0.05)
        with pytest.raises(StoreUnavailable):
            await pid_of(reader)


async def test_what_the_database_refuses_keeps_its_connection(reader: PostgresReader) -> None:
    before = await pid_of(reader)
    with pytest.raises(Exception, match="division by zero"):
        await reader.rows(Divided(), {"divisor": 0})
    assert await pid_of(reader) == before


async def test_a_question_is_asked_again_where_its_connection_was_lost(reader: PostgresReader) -> None:
    first, second = await asyncio.gather(pid_of(reader, 0.05), pid_of(reader, 0.05))
    last = await pid_of(reader)
    await reader.rows(Ended(), {"pid": first if last == second else second})
    assert len(set(await asyncio.gather(pid_of(reader, 0.05), pid_of(reader, 0.05)))) == CONNECTIONS
