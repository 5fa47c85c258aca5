"""One stream of the in-process bus: its messages, its groups, and what was lost."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from esper.contracts.envelope import Envelope


@dataclass
class Entry:
    """A message in a stream.

    Attributes:
        seq: Its place in the stream, from 0.
        envelope: The message.
    """

    seq: int
    envelope: Envelope


@dataclass
class Pending:
    """A message in one group's hands.

    Attributes:
        entry: The message.
        tries: How often it was handed out.
        reason: What the handler said at the last try.
        buried: Whether a dead letter took its place in the journal.
    """

    entry: Entry
    tries: int = 0
    reason: str = ""
    buried: bool = False


@dataclass
class Group:
    """Readers that share a stream.

    Attributes:
        name: Its name.
        next_seq: First message that was never handed out.
        returned: Messages that a member gave back unhandled, oldest first.
        in_hand: Messages with a member now.
        handled: Messages acknowledged.
        redelivered: Tries after the first.
        dead: Messages that went to the dead letters.
        lost: Messages that were trimmed before the group saw them.
        dropped: Messages that were acknowledged on receipt and not handled.
        pending: Places of the messages that were handed out and are not settled: acknowledged, or dead.
    """

    name: str
    next_seq: int
    returned: deque[Pending] = field(default_factory=deque)
    in_hand: int = 0
    handled: int = 0
    redelivered: int = 0
    dead: int = 0
    lost: int = 0
    dropped: int = 0
    pending: set[int] = field(default_factory=set)


class Stream:
    """Messages in order, up to a number of them.

    Args:
        name: Its name.
        max_length: Messages kept.
        lossy: Whether a full stream drops what a slow group has not seen.

    ``reserved`` counts messages that are on their way into it.
    """

    def __init__(self, name: str, max_length: int, *, lossy: bool) -> None:
        self.name, self.max_length, self.lossy = name, max_length, lossy
        self.groups: dict[str, Group] = {}
        self.published = 0
        self.trimmed = 0
        self.reserved = 0
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first_seq(self) -> int:
        """Place of the oldest message held, or of the next one where none is."""
        return self._entries[0].seq if self._entries else self.published

    @property
    def needed_from(self) -> int:
        """Place of the oldest message that is held or in some group's hands."""
        return min([self.first_seq, *(min(group.pending) for group in self.groups.values() if group.pending)])

    @property
    def has_room(self) -> bool:
        """Whether a message can be appended without taking one from a group that has not seen it."""
        beyond = len(self) + self.reserved + 1 - self.max_length
        if self.lossy or beyond <= 0:
            return True
        return all(group.next_seq >= self.first_seq + beyond for group in self.groups.values())

    def join(self, name: str, start_from: str) -> Group:
        """Return a group, made at the oldest message held (``"0"``) or after the newest (``">"``) where it is new."""
        if name not in self.groups:
            first = self.first_seq if start_from == "0" else self.published
            self.groups[name] = Group(name, first)
        return self.groups[name]

    def restore(self, next_seq: int, entries: Iterable[Entry]) -> None:
        """Hold what an earlier process held, also where that is more than the limit."""
        self._entries, self.published = deque(entries), next_seq

    def rejoin(self, name: str, next_seq: int, pending: Iterable[int]) -> None:
        """Make a group as an earlier process left it; what it was handed and has not settled comes first."""
        group = Group(name, max(next_seq, self.first_seq), pending=set(pending))
        group.returned.extend(
            Pending(entry, tries=1, reason="the process ended before the handler returned")
            for entry in self._entries
            if entry.seq in group.pending
        )
        self.groups[name] = group

    def append(self, envelope: Envelope) -> None:
        """Add a message, and trim the oldest beyond the limit; groups that had not seen it have lost it."""
        self._entries.append(Entry(self.published, envelope))
        self.published += 1
        while len(self) > self.max_length:
            gone = self._entries.popleft()
            self.trimmed += 1
            for group in self.groups.values():
                if group.next_seq <= gone.seq:
                    group.next_seq = gone.seq + 1
                    group.lost += 1

    def take(self, group: Group) -> Pending | None:
        """Hand the next message of a group out, given-back ones first, or None where there is none."""
        if group.returned:
            group.in_hand += 1
            return group.returned.popleft()
        if group.next_seq >= self.published:
            return None
        entry = self._entries[group.next_seq - self.first_seq]
        group.next_seq += 1
        group.in_hand += 1
        group.pending.add(entry.seq)
        return Pending(entry)

    def settle(self, group: Group, seq: int) -> None:
        """Note that a group is done with a message for good."""
        group.in_hand -= 1
        group.pending.discard(seq)

    def give_back(self, group: Group, pending: Pending) -> None:
        """Take an unhandled message back; it stays ahead of every later one."""
        group.in_hand -= 1
        group.returned.append(pending)
        group.returned = deque(sorted(group.returned, key=lambda held: held.entry.seq))
