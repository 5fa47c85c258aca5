"""Reads that are asked again and again: compiled once, and on PostgreSQL prepared and planned once for each connection.

A page of kernels takes PostgreSQL a fraction of a millisecond; the layers between session and driver take several times that.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL, CompoundSelect, Select
from sqlalchemy.dialects.postgresql import asyncpg as dialects
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from esper.services.urza.faults import unanswered, unstorable

Made = TypeVar("Made")
Values: TypeAlias = Mapping[str, object]
Statement: TypeAlias = Select[Any] | CompoundSelect[Any]
Rows: TypeAlias = Sequence[Sequence[Any]]
_Compiled: TypeAlias = tuple[str, tuple[str, ...], Values]
"""SQL, the names of its values in their order, and the values that every question of this shape has."""

PLAN_ONCE = {"plan_cache_mode": "force_generic_plan", "application_name": "esper"}
"""Statements here have one good plan, whatever the values; to plan a join anew takes longer than to run it."""
_LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.OperatorInterventionError, ConnectionError)
"""What a connection ends with whose server went away."""
_SHAPES = 512
"""Compiled statements that are kept; a library is asked a few dozen shapes of questions."""


class Question(Protocol):
    """What can be asked with different values: equal questions have equal statements."""

    def __hash__(self) -> int: ...

    def statement(self, *, arrays: bool) -> Statement:
        """Return the statement, with values by name; with ``arrays`` a list is one value, else it is expanded."""
        ...


class Reader(Protocol):
    """Asks a database."""

    async def rows(self, question: Question, values: Values) -> Rows:
        """Return what the statement of a question finds.

        Raises:
            ContractError: If a value is none that the database can hold.
            StoreUnavailable: If the database does not answer.
        """
        ...

    async def close(self) -> None:
        """Close the connections of its own."""
        ...


class SessionReader:
    """Asks through a session: one of its own for each question, or one that is open.

    Args:
        source: Makes sessions, or is one.
    """

    def __init__(self, source: async_sessionmaker[AsyncSession] | AsyncSession) -> None:
        self._source = source

    async def rows(self, question: Question, values: Values) -> Rows:
        """See `Reader`; faults are those of the session."""
        statement = question.statement(arrays=False)
        if isinstance(self._source, AsyncSession):
            return (await self._source.execute(statement, values)).all()
        async with self._source() as session:
            return (await session.execute(statement, values)).all()

    async def close(self) -> None:
        """It has no connections of its own."""


class PostgresReader:
    """Asks PostgreSQL through connections of its own, which are made when they are needed.

    Args:
        url: Address of the database.
        connections: Most at once.
        timeouts_s: How long it may take to let us in, to have a connection free, and to answer.
    """

    def __init__(self, url: URL, *, connections: int, timeouts_s: tuple[float, float, float]) -> None:
        self._url = url
        self._connect_s, self._wait_s, self._answer_s = timeouts_s
        self._dialect: Dialect = dialects.dialect()  # type: ignore[no-untyped-call]
        self._compiled: Kept[_Compiled] = Kept()
        self._free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for _ in range(connections):
            self._free.put_nowait(None)

    async def rows(self, question: Question, values: Values) -> Rows:
        """See `Reader`; a question that a lost connection took along is asked again, once."""
        sql, names, constants = self._compiled.of(question, lambda: self._prepared(question))
        given = [values[name] if name in values else constants[name] for name in names]
        with _translated():
            try:
                return await self.fetch(sql, given)
            except _LOST:
                self._forget_connections()
                return await self.fetch(sql, given)

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        for connection in self._unused():
            await connection.close(timeout=self._wait_s)

    async def fetch(self, sql: str, given: Sequence[object]) -> Rows:
        """Return what SQL finds, as the driver has it."""
        connection = await self._taken()
        try:
            if connection is None:
                connection = await self._connected()
            found: Rows = await connection.fetch(sql, *given)
            return found
        except (asyncpg.PostgresError, asyncpg.DataError):
            raise
        except BaseException:  # cut short, by the caller or by the line: nobody knows what would be read next
            if connection is not None:
                connection.terminate()
            raise
        finally:
            self._free.put_nowait(None if connection is None or connection.is_closed() else connection)

    async def _taken(self) -> Any:
        """Take a connection that is free, the one that was used last, or the right to make one."""
        if not self._free.empty():
            return self._free.get_nowait()
        async with asyncio.timeout(self._wait_s):
            return await self._free.get()

    async def _connected(self) -> Any:
        _, options = self._dialect.create_connect_args(self._url)
        return await asyncpg.connect(
            **options,
            timeout=self._connect_s,
            command_timeout=self._answer_s,
            statement_cache_size=_SHAPES,
            max_cached_statement_lifetime=0,
            server_settings=PLAN_ONCE,
        )

    def _forget_connections(self) -> None:
        """End those that nobody uses: where one was lost, the server has been away."""
        for connection in self._unused():
            connection.terminate()

    def _unused(self) -> list[Any]:
        """Take the connections that nobody uses, and leave the right to make others."""
        taken = [self._free.get_nowait() for _ in range(self._free.qsize())]
        for _ in taken:
            self._free.put_nowait(None)
        return [connection for connection in taken if connection is not None]

    def _prepared(self, question: Question) -> _Compiled:
        compiled = question.statement(arrays=True).compile(dialect=self._dialect)
        constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        return str(compiled), tuple(compiled.positiontup or ()), constants


class Kept(Generic[Made]):
    """What was made of questions, of the latest ones."""

    def __init__(self) -> None:
        self._made: OrderedDict[Question, Made] = OrderedDict()

    def of(self, question: Question, make: Callable[[], Made]) -> Made:
        """Return what was made of a question, made now where it was not kept."""
        if question in self._made:
            self._made.move_to_end(question)
            return self._made[question]
        made = self._made[question] = make()
        if len(self._made) > _SHAPES:
            self._made.popitem(last=False)
        return made


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the driver raises into errors of this library."""
    try:
        yield
    except (asyncpg.DataError, UnicodeEncodeError, OverflowError) as error:
        raise unstorable(error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise unanswered(error) from error
