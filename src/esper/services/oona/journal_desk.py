"""The journal of an in-process bus, seen while no bus is open on it."""

import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from esper.contracts.envelope import DeadLetter, Envelope
from esper.errors import BusUnavailable, ContractError
from esper.ports import BusHealth
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.desk import GroupFigures, Letter, Passing, StreamFigures, check_stream, message_of
from esper.services.oona.journal import GroupState, Journal, StreamState


class JournalDesk:
    """Implements `esper.services.oona.desk.Desk` on a journal; nothing comes to it while it is looked at.

    Args:
        path: The file, which must exist.
        codec: Knows the declared streams.

    Raises:
        NotFound: If there is no such file.
        ConfigError: If it is no journal.
        StoreUnavailable: If a bus is open on it.
    """

    def __init__(self, path: Path, *, codec: Codec | None = None) -> None:
        self._codec = codec or Codec()
        self._journal = Journal.existing(path)

    async def figures(self) -> list[StreamFigures]:
        """Return what every stream holds, by name; see `Desk`."""
        streams = self._journal.load()
        return [
            StreamFigures(
                stream=name,
                held=len(state.messages),
                published=state.next_seq,
                removed=state.next_seq - len(state.messages),
                dead=len(streams[name + DEAD_SUFFIX].messages) if name + DEAD_SUFFIX in streams else 0,
                groups=tuple(_figures(state, group) for group in sorted(state.groups, key=lambda group: group.name)),
            )
            for name, state in sorted(streams.items())
        ]

    async def health(self) -> BusHealth:
        """Tell whether the journal can be written; see `Desk`."""
        began, why = time.perf_counter(), ""
        try:
            self._journal.check()
        except BusUnavailable as error:
            why = str(error)
        answered_s, streams = time.perf_counter() - began, self._journal.load().values()
        return BusHealth(
            usable=not why,
            why=why,
            server=f"journal {self._journal.path}",
            answered_s=answered_s,
            streams=len(streams),
            messages=sum(len(stream.messages) for stream in streams),
            used_bytes=self._journal.size_bytes(),
        )

    async def letters(self, stream: str | None = None) -> list[Letter]:
        """Return dead letters; see `Desk`."""
        return [
            self._letter(grave, seq, envelope)
            for grave, state in sorted(self._journal.load().items())
            if grave.endswith(DEAD_SUFFIX) and stream in (None, grave.removesuffix(DEAD_SUFFIX))
            for seq, envelope in state.messages
        ]

    async def replay(self, letter: Letter) -> bool:
        """Put a message back; see `Desk`."""
        content = message_of(letter)
        return self._moved(letter, content)

    async def drop(self, letter: Letter) -> bool:
        """Take a letter away; see `Desk`."""
        return self._moved(letter, None)

    async def follow(self, stream: str, *, last: int, wait: bool) -> AsyncIterator[Passing]:
        """Yield the last messages of a stream; none comes, so that there is nothing to wait for."""
        streams = self._journal.load()
        check_stream(stream, sorted(streams))
        for seq, envelope in streams[stream].messages[-last:] if last else ():
            yield Passing(str(seq), envelope)

    async def close(self) -> None:
        """Release the file."""
        self._journal.close()

    def _moved(self, letter: Letter, content: DeadLetter | None) -> bool:
        streams = self._journal.load()
        seq = int(letter.place)
        if seq not in {held for held, _ in streams[letter.grave].messages}:
            return False
        changed = {letter.grave: without(streams[letter.grave], {seq})}
        if content is not None:
            changed[content.stream] = _with(streams.get(content.stream, StreamState(0)), content.envelope)
        self._journal.replace(changed)
        return True

    def _letter(self, grave: str, seq: int, envelope: Envelope) -> Letter:
        try:
            content = self._codec.open(envelope)
        except ContractError as error:
            return Letter(grave, str(seq), None, envelope.sent_at, str(error))
        if not isinstance(content, DeadLetter):
            return Letter(grave, str(seq), None, envelope.sent_at, f"it is a {envelope.type}, and no dead letter")
        return Letter(grave, str(seq), content, envelope.sent_at)


def without(state: StreamState, gone: Collection[int]) -> StreamState:
    """Return a stream without some of its messages; those before them move up, as a stream has no gaps.

    Args:
        state: The stream.
        gone: Places of the messages to leave out.
    """
    kept = [(seq, envelope) for seq, envelope in state.messages if seq not in gone]
    first = state.next_seq - len(kept)
    moved = {seq: first + index for index, (seq, _) in enumerate(kept)}
    return StreamState(
        next_seq=state.next_seq,
        messages=[(moved[seq], envelope) for seq, envelope in kept],
        groups=[
            replace(
                group,
                next_seq=min((to for seq, to in moved.items() if seq >= group.next_seq), default=state.next_seq),
                pending=frozenset(moved[seq] for seq in group.pending if seq in moved),
            )
            for group in state.groups
        ],
    )


def _with(state: StreamState, envelope: Envelope) -> StreamState:
    return StreamState(state.next_seq + 1, [*state.messages, (state.next_seq, envelope)], state.groups)


def _figures(state: StreamState, group: GroupState) -> GroupFigures:
    held = dict(state.messages)
    pending = sorted(seq for seq in group.pending if seq in held)
    oldest = (datetime.now(UTC) - held[pending[0]].sent_at).total_seconds() if pending else None
    return GroupFigures(
        group=group.name,
        lag=sum(seq >= group.next_seq for seq in held),
        pending=len(pending),
        oldest_pending_s=None if oldest is None else max(0.0, oldest),
        redelivered=None if pending else 0,
        lost=None,
    )
