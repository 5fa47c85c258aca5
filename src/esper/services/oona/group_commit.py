"""Many publishers and readers, one commit: what waits while the journal writes goes into the next batch."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from esper.contracts.envelope import Envelope
from esper.errors import BusUnavailable
from esper.services.oona.journal import GroupState, Journal
from esper.services.oona.memory_stream import Group, Stream

_MAX_BATCH = 2_000
"""Of what goes into one commit, so that nobody waits long for the rest of a batch."""


@dataclass(slots=True)
class Settlement:
    """A message that a group is done with."""

    stream: Stream
    group: Group
    seq: int


@dataclass(slots=True)
class Addition:
    """A message on its way into the journal.

    Attributes:
        stream: Where it goes.
        envelope: The message.
        kept: Is done once the journal holds it.
        settles: The message that it takes the place of, as a dead letter does.
    """

    stream: Stream
    envelope: Envelope
    kept: "asyncio.Future[None]"
    settles: Settlement | None = None


@dataclass
class _Batch:
    """What goes into one commit."""

    additions: list[Addition]
    acknowledged: list[Settlement]
    moved: dict[int, tuple[Stream, Group]]

    def __post_init__(self) -> None:
        self.settlements = [*self.acknowledged, *(a.settles for a in self.additions if a.settles is not None)]
        for settlement in self.settlements:
            self.moved[id(settlement.group)] = (settlement.stream, settlement.group)

    def messages(self) -> list[tuple[str, int, Envelope]]:
        """Return each new message with its place."""
        next_seq = {a.stream.name: a.stream.published for a in self.additions}
        placed = []
        for addition in self.additions:
            name = addition.stream.name
            placed.append((name, next_seq[name], addition.envelope))
            next_seq[name] += 1
        return placed

    def groups(self) -> list[GroupState]:
        """Return how far groups will have come."""
        settled: dict[int, set[int]] = {}
        for settlement in self.settlements:
            settled.setdefault(id(settlement.group), set()).add(settlement.seq)
        return [
            GroupState(stream.name, group.name, group.next_seq, frozenset(group.pending - settled.get(key, set())))
            for key, (stream, group) in self.moved.items()
        ]

    def trims(self, kept_from: dict[str, int]) -> list[tuple[str, int]]:
        """Return from where on streams are still needed, where that has moved on far enough to be worth a write."""
        streams = {s.name: s for s in (*(a.stream for a in self.additions), *(s for s, _ in self.moved.values()))}
        needed = {name: stream.needed_from for name, stream in streams.items()}
        return [
            (name, seq)
            for name, seq in needed.items()
            if seq - kept_from.get(name, 0) >= max(1, streams[name].max_length // 4)
        ]


class GroupCommit:
    """Writes to the journal in batches, one at a time, in a thread of its own.

    A message enters its stream when the journal holds it, never before; nobody can read what a crash would take back.

    Args:
        journal: The file.
        wake: Is awaited after each commit.
    """

    def __init__(self, journal: Journal, wake: Callable[[], Awaitable[None]]) -> None:
        self._journal, self._wake = journal, wake
        self._additions: list[Addition] = []
        self._settlements: list[Settlement] = []
        self._moved: dict[int, tuple[Stream, Group]] = {}
        self._kept_from: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="oona-journal")
        self._task: asyncio.Task[None] | None = None
        self.failure: BusUnavailable | None = None

    def add(self, stream: Stream, envelope: Envelope, *, settles: Settlement | None = None) -> "asyncio.Future[None]":
        """Take a message, and return what is done once the journal holds it."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream.reserved += 1
        self._additions.append(Addition(stream, envelope, kept, settles))
        self._start()
        return kept

    def settle(self, stream: Stream, group: Group, seq: int) -> None:
        """Take an acknowledgement; it is kept with one of the next commits."""
        self._settlements.append(Settlement(stream, group, seq))
        self._start()

    def moved(self, stream: Stream, group: Group) -> None:
        """Note that a group is new, or was handed a message."""
        self._moved[id(group)] = (stream, group)
        self._start()

    async def flush(self) -> None:
        """Return once everything was written.

        Raises:
            BusUnavailable: If the last write failed.
        """
        self._start()
        while self._task is not None and not self._task.done():
            await asyncio.shield(self._task)
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        """Write what is left, and release the file.

        Raises:
            BusUnavailable: If that failed; what was acknowledged since is handed out again after the next start.
        """
        try:
            await self.flush()
        finally:
            self._thread.shutdown()
            self._journal.close()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write(), name="oona-journal")

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._additions or self._settlements or self._moved:
            await asyncio.sleep(0)  # Lets everybody who is ready join the batch.
            batch = _Batch(self._additions[:_MAX_BATCH], self._settlements, self._moved)
            self._additions, self._settlements, self._moved = self._additions[_MAX_BATCH:], [], {}
            trims = batch.trims(self._kept_from)
            try:
                await loop.run_in_executor(self._thread, self._journal.commit, batch.messages(), batch.groups(), trims)
            except BusUnavailable as error:
                self._refuse(batch, error)
                return
            self._kept_from.update(trims)
            self._apply(batch)
            await self._wake()

    def _apply(self, batch: _Batch) -> None:
        self.failure = None
        for settlement in batch.settlements:
            settlement.stream.settle(settlement.group, settlement.seq)
        for addition in batch.additions:
            addition.stream.reserved -= 1
            addition.stream.append(addition.envelope)
            if not addition.kept.done():
                addition.kept.set_result(None)

    def _refuse(self, batch: _Batch, error: BusUnavailable) -> None:
        """Give every sender the error; what was handled stays handled, and is written with the next batch."""
        self.failure = error
        self._settlements = batch.acknowledged + self._settlements
        self._moved = {**batch.moved, **self._moved}
        waiting, self._additions = [*batch.additions, *self._additions], []
        for addition in waiting:
            addition.stream.reserved -= 1
            if not addition.kept.done():
                addition.kept.set_exception(error)
