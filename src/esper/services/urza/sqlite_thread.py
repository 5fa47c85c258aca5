"""Whole transactions on a SQLite file, in a thread of their own.

Through an asynchronous driver each statement crosses to a thread and back, which costs several times what the statement does.
A transaction that waits for nothing but its statements crosses once.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.orm import Session

from esper.services.urza.reader import Kept, Question, Rows, Statement, Values
from esper.services.urza.sqlite_driver import WRITING, begin, configure

Result = TypeVar("Result")


class SqliteThread:
    """Runs work one after the other; connection and thread are there from the first one on.

    Args:
        url: The file.
    """

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(url.set(drivername="sqlite"))
        event.listen(self._engine, "connect", configure)
        event.listen(self._engine, "begin", begin)
        self._thread: ThreadPoolExecutor | None = None

    async def _hop(self, work: Callable[[], Result]) -> Result:
        """Do work in the thread."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="esper-urza")
        told = contextvars.copy_context()  # who writes is known in it
        return await asyncio.get_running_loop().run_in_executor(self._thread, told.run, work)

    async def close(self) -> None:
        """Close the connection, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._engine.dispose)
            thread.shutdown(wait=False)


class SqliteWriter(SqliteThread):
    """Runs transactions that write."""

    async def run(self, work: Callable[[Session], Result]) -> Result:
        """Run work in a transaction that is committed where it returns, and not at all where it raises."""
        return await self._hop(lambda: self._transacted(work))

    def _transacted(self, work: Callable[[Session], Result]) -> Result:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            session.connection(execution_options={WRITING: True})
            return work(session)


class SqliteReader(SqliteThread):
    """Asks SQLite through a connection beside the one that writes (see `esper.services.urza.reader.Reader`)."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self._statements: Kept[Statement] = Kept()

    async def rows(self, question: Question, values: Values) -> Rows:
        """See `esper.services.urza.reader.Reader`; faults are those of SQLAlchemy."""
        statement = self._statements.of(question, lambda: question.statement(arrays=False))

        def found() -> Rows:
            connection: Connection
            with self._engine.connect() as connection:
                return connection.execute(statement, values).all()

        return await self._hop(found)
