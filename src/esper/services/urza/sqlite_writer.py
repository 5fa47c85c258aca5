"""Whole transactions on a SQLite file, in one thread of their own.

Through an asynchronous driver each statement crosses to a thread and back, which costs several times what the statement does.
A transaction that waits for nothing but its statements crosses once.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import URL, create_engine, event
from sqlalchemy.orm import Session

from esper.services.urza.sqlite_driver import WRITING, begin, configure

Result = TypeVar("Result")


class SqliteWriter:
    """Runs transactions one after the other; connection and thread are there from the first one on.

    Args:
        url: The file.
    """

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(url.set(drivername="sqlite"))
        event.listen(self._engine, "connect", configure)
        event.listen(self._engine, "begin", begin)
        self._thread: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[Session], Result]) -> Result:
        """Run work in a transaction that is committed where it returns, and not at all where it raises."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="esper-urza")
        told = contextvars.copy_context()  # who writes is known in it
        return await asyncio.get_running_loop().run_in_executor(self._thread, told.run, self._transacted, work)

    def _transacted(self, work: Callable[[Session], Result]) -> Result:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            session.connection(execution_options={WRITING: True})
            return work(session)

    async def close(self) -> None:
        """Close the connection, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._engine.dispose)
            thread.shutdown(wait=False)
