"""Announcements that leave the store only if what they announce is stored."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from esper.contracts.ids import MessageId
from esper.contracts.topics import Message
from esper.errors import BusUnavailable, Conflict, ContractError, StoreUnavailable
from esper.ports import MessageBus
from esper.services.oona.codec import Codec, packed, unpacked
from esper.services.urza.database import Database, once_committed
from esper.services.urza.models import OutboxRow
from esper.telemetry.logs import get_logger

_log = get_logger("urza.outbox")
_WAITING = insert(OutboxRow.__table__)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Announcement:
    """A message that waits.

    Attributes:
        id: The id that it is published under, however often.
        message: What is published.
    """

    id: MessageId
    message: Message


class Outbox:
    """The table of messages that wait, and the event that says there are some.

    Args:
        database: Where the table is.
    """

    def __init__(self, database: Database) -> None:
        self.filled = asyncio.Event()
        self._database = database
        self._codec = Codec()

    def add(self, session: Session, stream: str, message: Message) -> None:
        """Write a message in the transaction of what it announces, which wakes a relay of this process once it is committed."""
        session.add(OutboxRow(stream=stream, content=packed(self._codec.seal(stream, message))))
        once_committed(session, self.notify)

    def write(self, session: Session, *announced: tuple[str, Message]) -> None:
        """Write several in one statement, in this order; otherwise as `add`."""
        rows = [{"stream": of, "content": packed(self._codec.seal(of, what))} for of, what in announced]
        session.execute(_WAITING, rows)
        once_committed(session, self.notify)

    def notify(self) -> None:
        """Wake a relay of this process."""
        self.filled.set()

    async def waiting(self, limit: int) -> list[tuple[int, str, Announcement | ContractError]]:
        """Return the oldest announcements that wait: number, stream, and what is announced or why it cannot be read."""
        async with self._database.reading() as session:
            rows = (await session.scalars(select(OutboxRow).order_by(OutboxRow.id).limit(limit))).all()
            return [(row.id, row.stream, self._read(row.content)) for row in rows]

    def _read(self, content: bytes) -> Announcement | ContractError:
        try:
            envelope = unpacked(content)
            return Announcement(MessageId(envelope.id), self._codec.open(envelope))
        except ContractError as error:
            return error

    async def sent(self, numbers: Sequence[int]) -> None:
        """Forget messages that were published."""
        published = delete(OutboxRow).where(OutboxRow.id.in_(numbers))
        await self._database.apply(lambda session: session.execute(published))


class OutboxRelayConfig(BaseModel):
    """How eagerly announcements are relayed.

    Attributes:
        poll_s: How long to wait for news from this process before looking for those of others.
        batch: Messages read at once.
        outage_s: Pause after the bus or the database did not answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll_s: float = Field(default=2.0, gt=0)
    batch: int = Field(default=100, ge=1)
    outage_s: float = Field(default=1.0, gt=0)


class OutboxRelay:
    """Publishes what waits in the outbox, in order and at least once, always under the same id.

    ```python
    async with OutboxRelay(manager.outbox, bus):
        ...
    ```

    Args:
        outbox: Where messages wait.
        bus: Where they go.
        config: How eagerly.
    """

    def __init__(self, outbox: Outbox, bus: MessageBus, config: OutboxRelayConfig | None = None) -> None:
        self.published = 0
        self.outages = 0
        self.unreadable = 0
        self._outbox, self._bus = outbox, bus
        self._config = config or OutboxRelayConfig()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self) -> None:
        """Relay until `close` is called."""
        while not self._closing.is_set():
            self._outbox.filled.clear()
            try:
                pause_s = 0.0 if await self._relay_batch() else self._config.poll_s
            except (BusUnavailable, StoreUnavailable, Conflict):
                self.outages += 1
                pause_s = self._config.outage_s
            await self._wait(pause_s)

    async def close(self) -> None:
        """End after the message in hand; what waits is relayed by the next process."""
        self._closing.set()
        self._outbox.notify()
        if self._task is not None:
            await self._task

    async def _relay_batch(self) -> bool:
        """Publish what waits; return whether there may be more."""
        waiting = await self._outbox.waiting(self._config.batch)
        sent: list[int] = []
        try:
            for number, stream, announcement in waiting:
                if self._closing.is_set():
                    break
                try:
                    await self._publish(stream, announcement)
                except ContractError as error:
                    self.unreadable += 1
                    _log.error("announcement_unreadable", stream=stream, number=number, why=str(error))
                sent.append(number)
        finally:
            # What was published before an outage is not published again after it.
            if sent:
                await self._outbox.sent(sent)
        return len(waiting) == self._config.batch

    async def _publish(self, stream: str, announcement: Announcement | ContractError) -> None:
        if isinstance(announcement, ContractError):
            raise announcement
        await self._bus.publish(stream, announcement.message, message_id=announcement.id)
        self.published += 1

    async def _wait(self, seconds: float) -> None:
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._outbox.filled.wait()
        except TimeoutError:
            return
