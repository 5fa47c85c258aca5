"""Reads that are asked again and again: compiled once, and on PostgreSQL prepared and planned once for each connection.

A page of kernels takes PostgreSQL a fraction of a millisecond; the layers between session and driver take several times that.
"""

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
        self._statements: _Kept[Statement] = _Kept()

    async def rows(self, question: Question, values: Values) -> Rows:
        """See `Reader`; faults are those of the session."""
        statement = self._statements.of(question, lambda: question.statement(arrays=False))
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
        self._url, self._connections = url, connections
        self._connect_s, self._wait_s, self._answer_s = timeouts_s
        self._dialect: Dialect = dialects.dialect()  # type: ignore[no-untyped-call]
        self._compiled: _Kept[_Compiled] = _Kept()
        self._pool: Any = None

    async def rows(self, question: Question, values: Values) -> Rows:
        """See `Reader`; a question that a lost connection took along is asked again, once."""
        sql, names, constants = self._compiled.of(question, lambda: self._prepared(question))
        given = [values[name] if name in values else constants[name] for name in names]
        with _translated():
            try:
                return await self.fetch(sql, given)
            except _LOST:
                await self._forget_connections()
                return await self.fetch(sql, given)

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()

    async def fetch(self, sql: str, given: Sequence[object]) -> Rows:
        """Return what SQL finds, as the driver has it."""
        if self._pool is None:
            self._pool = self._made()
        await self._pool  # opens it, once
        async with self._pool.acquire(timeout=self._wait_s) as connection:
            found: Rows = await connection.fetch(sql, *given)
            return found

    def _made(self) -> Any:
        _, options = self._dialect.create_connect_args(self._url)
        return asyncpg.create_pool(
            **options,
            min_size=0,
            max_size=self._connections,
            reset=_nothing,
            timeout=self._connect_s,
            command_timeout=self._answer_s,
            statement_cache_size=_SHAPES,
            max_cached_statement_lifetime=0,
            server_settings=PLAN_ONCE,
        )

    async def _forget_connections(self) -> None:
        """Let every connection be made anew: where one was lost, the server has been away."""
        if self._pool is not None:
            await self._pool.expire_connections()

    def _prepared(self, question: Question) -> _Compiled:
        compiled = question.statement(arrays=True).compile(dialect=self._dialect)
        constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        return str(compiled), tuple(compiled.positiontup or ()), constants


async def _nothing(_: object) -> None:
    """Leave a connection as it is: what is asked here changes nothing of it."""


class _Kept(Generic[Made]):
    """What was made of questions, of the latest ones."""

    def __init__(self) -> None:
        self._made: OrderedDict[Question, Made] = OrderedDict()

    def of(self, question: Question, make: Callable[[], Made]) -> Made:
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
