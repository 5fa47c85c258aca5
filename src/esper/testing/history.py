"""What happened on a bus, written down by those who took part, and a checker that finds broken promises in it.

Every process appends to a file of its own; a line is whole in it or absent, also where the process is killed:

```python
with History.at(folder / "reader-1.jsonl") as history:
    history.note(Kind.HANDED, Message("lab.results", "writer-1", 7), group="plotters", member="reader", id=delivery.id)
...
assert not breaches(read(folder))
```

A message is named by its writer, who numbers what it publishes; body and history both carry that name.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self


class Kind(StrEnum):
    """What can happen."""

    SENT = "sent"
    """A writer begins to publish."""
    ACKNOWLEDGED = "acknowledged"
    """Publishing returned."""
    REFUSED = "refused"
    """Publishing raised; the bus may hold the message nevertheless."""
    JOINED = "joined"
    """A member begins to read."""
    VANISHED = "vanished"
    """A group was destroyed: it begins anew with the oldest message held."""
    LEFT = "left"
    """A member stopped in good order, and gave back what it had not begun."""
    HANDED = "handed"
    """A handler was called."""
    FAILED = "failed"
    """A handler raised."""
    HANDLED = "handled"
    """A handler returned."""
    EFFECT = "effect"
    """What a handler did is durable."""
    BURIED = "buried"
    """A dead letter stands for the message; ``group`` is the one that could not handle it."""


class Message(NamedTuple):
    """The name of a message.

    Attributes:
        stream: Where it is published.
        writer: Who publishes it, one message after the other; a restarted writer needs another name.
        number: Its place among the writer's messages, ascending.
    """

    stream: str
    writer: str
    number: int


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What.
        at_ns: When, by a clock that all processes of the machine share.
        process: The process that saw it; a restarted one needs another name.
        stream: Which stream.
        writer: Who published the message, where it is about one.
        number: The message's place among its writer's.
        id: The message's id on the bus, where it is known.
        group: The group, where it is about one.
        member: The member's name in its group; a restarted one may keep it.
        redelivered: Whether the message was marked as handed out before.
    """

    kind: Kind
    at_ns: int
    process: str
    stream: str = ""
    writer: str = ""
    number: int = -1
    id: str = ""
    group: str = ""
    member: str = ""
    redelivered: bool = False

    @property
    def message(self) -> Message:
        """The message that it is about."""
        return Message(self.stream, self.writer, self.number)


class History:
    """Appends events to a file or pipe, each in one write.

    Args:
        descriptor: Where to; it is not closed.
        process: Name of this process, on every event.
    """

    def __init__(self, descriptor: int, process: str) -> None:
        self._descriptor, self._process = descriptor, process

    @classmethod
    def at(cls, path: Path) -> Self:
        """Open a file whose name is the name of the process."""
        return cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), path.stem)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def note(
        self,
        kind: Kind,
        message: Message,
        *,
        id: str = "",
        group: str = "",
        member: str = "",
        redelivered: bool = False,
    ) -> None:
        """Write down what happened now."""
        event = Event(kind, time.monotonic_ns(), self._process, *message, id, group, member, redelivered)
        os.write(self._descriptor, json.dumps(vars(event)).encode() + b"\n")


def read(folder: Path) -> list[Event]:
    """Return the events of all processes that wrote to a folder, in time; a last line that was cut off is passed over."""
    lines = (line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines(keepends=True))
    return in_time(Event(**json.loads(line)) for line in lines if line.endswith(b"\n"))


def in_time(events: Iterable[Event]) -> list[Event]:
    """Return events in the order in which they happened; what one process wrote keeps its order."""
    return sorted((_typed(event) for event in events), key=lambda event: event.at_ns)


def _typed(event: Event) -> Event:
    return event if isinstance(event.kind, Kind) else Event(**asdict(event) | {"kind": Kind(event.kind)})


class Promise(StrEnum):
    """What a bus promises, by how it is broken."""

    LOST = "lost"
    """A message whose publishing was acknowledged has neither an effect in a group nor a dead letter."""
    DOUBLED = "doubled"
    """A message had its effect in a group more than once."""
    DISORDERED = "disordered"
    """A member that handles one message at a time was handed them in another order."""
    INVENTED = "invented"
    """A message that nobody published, or under another id."""


class Breach(NamedTuple):
    """A broken promise.

    Attributes:
        promise: Which.
        message: The message concerned.
        group: The group concerned, or empty.
        why: What shows it.
    """

    promise: Promise
    message: Message
    group: str
    why: str


def breaches(events: Iterable[Event]) -> list[Breach]:
    """Return every broken promise in a history that is over: all faults healed, and every group at rest.

    Order is judged per writer, on messages whose publishing was acknowledged, at their first handing out in a group: a
    publish that was sent twice, or whose answer never came, may enter its stream again later. Where a group has had one
    member, at any time, under one name, the whole group has an order; in a group of several a member has one in what is
    not marked as redelivered, until another leaves and gives back what it had not begun.
    """
    history = _Indexed(in_time(events))
    found = [*_invented(history), *_lost(history), *_doubled(history)]
    for stream, group in sorted(history.groups):
        handed = history.handed[stream, group]
        found += _out_of_turn(history, group, handed)
        if len(history.members[stream, group]) == 1:
            found += _passed_over(history, stream, group)
    return found


class _Indexed:
    """A history, ordered for questions."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.ids: dict[Message, set[str]] = defaultdict(set)
        self.sent: set[Message] = set()
        self.acknowledged: set[Message] = set()
        self.groups: set[tuple[str, str]] = set()
        self.members: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.left: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        self.handed: dict[tuple[str, str], list[Event]] = defaultdict(list)
        self.effects: dict[tuple[str, Message], int] = defaultdict(int)
        self.buried: set[tuple[str, Message]] = set()
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        place = (event.stream, event.group)
        if event.id and event.kind in (Kind.SENT, Kind.ACKNOWLEDGED):
            self.ids[event.message].add(event.id)
        match event.kind:
            case Kind.SENT:
                self.sent.add(event.message)
            case Kind.ACKNOWLEDGED:
                self.acknowledged.add(event.message)
            case Kind.JOINED:
                self.groups.add(place)
                self.members[place].add(event.member)
            case Kind.LEFT:
                self.left[place].setdefault(event.process, event.at_ns)
            case Kind.HANDED:
                self.handed[place].append(event)
            case Kind.EFFECT:
                self.effects[event.group, event.message] += 1
            case Kind.BURIED:
                self.buried.add((event.group, event.message))
            case Kind.REFUSED | Kind.FAILED | Kind.HANDLED | Kind.VANISHED:
                pass


def _invented(history: _Indexed) -> Iterator[Breach]:
    ids = {message: set(known) for message, known in history.ids.items()}
    for event in history.events:
        if event.kind not in (Kind.HANDED, Kind.EFFECT, Kind.BURIED):
            continue
        if event.message not in history.sent:
            yield Breach(Promise.INVENTED, event.message, event.group, f"{event.kind}, but never sent")
        elif event.id:
            known = ids.setdefault(event.message, {event.id})
            if event.id not in known:
                known.add(event.id)
                yield Breach(Promise.INVENTED, event.message, event.group, f"it has the ids {', '.join(sorted(known))}")


def _lost(history: _Indexed) -> Iterator[Breach]:
    for message in sorted(history.acknowledged):
        for group in sorted(group for stream, group in history.groups if stream == message.stream):
            if not history.effects[group, message] and (group, message) not in history.buried:
                yield Breach(Promise.LOST, message, group, "acknowledged to its writer, without an effect")


def _doubled(history: _Indexed) -> Iterator[Breach]:
    for (group, message), count in sorted(history.effects.items()):
        if count > 1:
            yield Breach(Promise.DOUBLED, message, group, f"{count} effects")


def _out_of_turn(history: _Indexed, group: str, handed: Sequence[Event]) -> Iterator[Breach]:
    """Find messages that came after a later one of their writer."""
    sole = handed and len(history.members[handed[0].stream, group]) == 1
    unmarked: dict[Message, int] = defaultdict(int)
    for event in handed:
        unmarked[event.message] += not event.redelivered
    seen: set[Message] = set()
    last: dict[tuple[str, str], int] = {}
    for event in handed:
        if event.message in seen or event.message not in history.acknowledged:
            continue
        seen.add(event.message)
        if not sole and (event.redelivered or unmarked[event.message] > 1 or _may_be_given_back(history, event)):
            continue
        reader = ("" if sole else event.process, event.writer)
        if event.number < last.get(reader, -1):
            yield Breach(Promise.DISORDERED, event.message, group, f"handed out after number {last[reader]}")
        last[reader] = max(event.number, last.get(reader, -1))


def _may_be_given_back(history: _Indexed, event: Event) -> bool:
    left = history.left[event.stream, event.group]
    return any(at_ns <= event.at_ns for process, at_ns in left.items() if process != event.process)


def _passed_over(history: _Indexed, stream: str, group: str) -> Iterator[Breach]:
    """Find messages that failed and were not the next that their only member was handed.

    A process that took part before its group vanished works off what it holds of the old one, and owes no retry of that.
    It owes them again once it joins, or is handed the group's first message unmarked: there the group begins anew.
    """
    first = next((event.message for event in history.handed[stream, group]), None)
    seen: set[str] = set()
    stale: set[str] = set()
    failed: dict[str, Event] = {}
    for event in history.events:
        if (event.stream, event.group) != (stream, group):
            continue
        seen.add(event.process)
        match event.kind:
            case Kind.VANISHED:
                stale = set(seen)
                failed.clear()
            case Kind.JOINED:
                stale.discard(event.process)
            case Kind.FAILED if event.process not in stale:
                failed[event.process] = event
            case Kind.HANDED:
                if event.message == first and not event.redelivered:
                    stale.discard(event.process)
                before = failed.pop(event.process, event)
                if before.message != event.message and (group, before.message) not in history.buried:
                    why = f"it failed, and number {event.number} of {event.writer} was handed out next"
                    yield Breach(Promise.DISORDERED, before.message, group, why)
