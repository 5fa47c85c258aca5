"""Many publishers and readers, one commit: what waits while the journal writes goes into the next batch."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from esper.contracts.envelope import Envelope
from esper.errors import BusUnavailable
from esper.services.oona.journal import GroupState, Journal
from esper.services.oona.memory_stream import Group, Stream
from esper.telemetry.bus_metrics import BusTimes

_MAX_BATCH = 2_000
"""Messages in one commit, about, so that nobody waits long for the rest of a batch."""


@dataclass(slots=True)
class _Addition:
    """Messages on their way into the journal.

    Attributes:
        stream: Where they go.
        envelopes: The messages.
        kept: Is done once the journal holds them.
        settles: The message that they take the place of, as a dead letter does.
    """

    stream: Stream
    envelopes: Sequence[Envelope]
    kept: "asyncio.Future[None]"
    settles: "_Move | None" = None


@dataclass(slots=True)
class _Move:
    """A group that has come further in its stream, and what it is done with."""

    stream: Stream
    group: Group
    settled: set[int]

    def state(self) -> GroupState:
        """Return how far it will have come."""
        pending = frozenset(self.group.pending - self.settled)
        return GroupState(self.stream.name, self.group.name, self.group.next_seq, pending)


class _Batch:
    """What goes into one commit."""

    def __init__(self, additions: list[_Addition], moved: dict[Group, Stream]) -> None:
        self.additions = additions
        self.moves: dict[Group, _Move] = {}
        for group, stream in moved.items():
            self.moves[group] = _Move(stream, group, group.acknowledged)
            group.acknowledged = set()
        self.acknowledged = {group: set(move.settled) for group, move in self.moves.items()}
        for burial in filter(None, (addition.settles for addition in additions)):
            self.moves.setdefault(burial.group, _Move(burial.stream, burial.group, set())).settled |= burial.settled

    def messages(self) -> list[tuple[str, int, list[Envelope]]]:
        """Return each stream with the place of its first new message, and its new messages."""
        streams: dict[Stream, list[Envelope]] = {}
        for addition in self.additions:
            streams.setdefault(addition.stream, []).extend(addition.envelopes)
        return [(stream.name, stream.published, envelopes) for stream, envelopes in streams.items()]

    def trims(self, kept_from: dict[str, int]) -> list[tuple[str, int]]:
        """Return from where on streams are still needed, where that has moved on far enough to be worth a write."""
        touched = (*(addition.stream for addition in self.additions), *(move.stream for move in self.moves.values()))
        needed = {stream: stream.needed_from for stream in dict.fromkeys(touched)}
        return [
            (stream.name, seq)
            for stream, seq in needed.items()
            if seq - kept_from.get(stream.name, 0) >= max(1, stream.max_length // 4)
        ]


class GroupCommit:
    """Writes to the journal in batches, one at a time, in a thread of its own.

    A message enters its stream when the journal holds it, never before; nobody can read what a crash would take back.

    Args:
        journal: The file.
        times: Where it is noted how long acknowledgements take to be kept.
    """

    def __init__(self, journal: Journal, times: BusTimes) -> None:
        self._journal, self._times = journal, times
        self._additions: list[_Addition] = []
        self._moved: dict[Group, Stream] = {}
        self._kept_from: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="oona-journal")
        self._task: asyncio.Task[None] | None = None
        self.failure: BusUnavailable | None = None

    def add(self, stream: Stream, envelopes: Sequence[Envelope]) -> "asyncio.Future[None]":
        """Take messages, and return what is done once the journal holds them: all, or none where it fails."""
        return self._add(_Addition(stream, envelopes, asyncio.get_running_loop().create_future()))

    def bury(self, grave: Stream, letter: Envelope, stream: Stream, group: Group, seq: int) -> "asyncio.Future[None]":
        """Take a dead letter; the same commit that keeps it settles the message whose place it takes."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        return self._add(_Addition(grave, [letter], kept, _Move(stream, group, {seq})))

    def acknowledge(self, stream: Stream, group: Group, seq: int) -> None:
        """Take an acknowledgement; it is kept with one of the next commits."""
        group.acknowledged.add(seq)
        self.moved(stream, group)

    def moved(self, stream: Stream, group: Group) -> None:
        """Note that a group is new, or was handed a message."""
        self._moved[group] = stream
        if self._task is None or self._task.done():
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

    async def size_bytes(self) -> int:
        """Return how large the journal is, once it turned out that it can be written.

        Raises:
            BusUnavailable: If it cannot.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.check)
        return self._journal.size_bytes()

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

    def _add(self, addition: _Addition) -> "asyncio.Future[None]":
        addition.stream.reserved += len(addition.envelopes)
        self._additions.append(addition)
        self._start()
        return addition.kept

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write(), name="oona-journal")

    async def _write(self) -> None:
        self.failure = None  # who waited for the last write knows; nothing of it is left but what is written now
        loop = asyncio.get_running_loop()
        while self._additions or self._moved:
            await asyncio.sleep(0)  # Lets everybody who is ready join the batch.
            batch = self._next_batch()
            trims = batch.trims(self._kept_from)
            states = [move.state() for move in batch.moves.values()]
            began = time.perf_counter()
            try:
                await loop.run_in_executor(self._thread, self._journal.commit, batch.messages(), states, trims)
            except BusUnavailable as error:
                self._refuse(batch, error)
                return
            except Exception as fault:  # of ours: whoever waits for this batch must hear of it, and not wait for ever
                self._refuse(
                    batch, BusUnavailable("the journal was not written", why=f"{type(fault).__name__}: {fault}")
                )
                raise
            self._kept_from.update(trims)
            self._apply(batch)
            for name in {move.stream.name for move in batch.moves.values() if move.settled}:
                self._times[name].acknowledge.observe(time.perf_counter() - began)

    def _next_batch(self) -> _Batch:
        count, taken = 0, 0
        while taken < len(self._additions) and count < _MAX_BATCH:
            count += len(self._additions[taken].envelopes)
            taken += 1
        batch = _Batch(self._additions[:taken], self._moved)
        self._additions, self._moved = self._additions[taken:], {}
        return batch

    def _apply(self, batch: _Batch) -> None:
        for addition in batch.additions:
            addition.stream.reserved -= len(addition.envelopes)
            addition.stream.extend(addition.envelopes)
            if not addition.kept.done():
                addition.kept.set_result(None)
        for move in batch.moves.values():
            for seq in move.settled:
                move.stream.settle(move.group, seq)

    def _refuse(self, batch: _Batch, error: BusUnavailable) -> None:
        """Give every sender the error; what was handled stays handled, and is written with the next batch."""
        self.failure = error
        for group, acknowledged in batch.acknowledged.items():
            group.acknowledged |= acknowledged
            self._moved.setdefault(group, batch.moves[group].stream)
        waiting, self._additions = [*batch.additions, *self._additions], []
        for addition in waiting:
            addition.stream.reserved -= len(addition.envelopes)
            addition.stream.moves.ring()
            if not addition.kept.done():
                addition.kept.set_exception(error)
