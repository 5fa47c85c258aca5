"""Streams of the in-process bus: their messages, their groups, and what was lost."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from esper.contracts.envelope import Attempt, Envelope
from esper.runtime.waits import Bell
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.handing import noted
from esper.services.oona.losses import Losses


class Pending(msgspec.Struct, gc=False):
    """A message in one group's hands.

    Attributes:
        seq: Its place in the stream, from 0.
        envelope: The message.
        tries: How often it was handed out.
        reason: What the handler said at the last try.
        settled: Whether it was acknowledged, or a dead letter took its place.
        history: The tries that failed, in this process.
    """

    seq: int
    envelope: Envelope
    tries: int = 0
    reason: str = ""
    settled: bool = False
    history: tuple[Attempt, ...] = ()

    def note(self, error: Exception) -> None:
        """Take note of a try that failed."""
        self.history = noted(self.history, error)
        self.reason = self.history[-1].reason


@dataclass(eq=False)
class Group:
    """Readers that share a stream.

    Attributes:
        name: Its name.
        next_seq: First message that was never handed out.
        returned: Messages that a member gave back unhandled, oldest first.
        pending: Places of the messages that were handed out and are not settled: acknowledged, or dead.
        acknowledged: Those of them that were acknowledged and wait for the journal.
        handled: Messages acknowledged.
        redelivered: Tries after the first.
        dead: Messages that went to the dead letters.
        lost: Messages that were trimmed before the group saw them.
        received: Messages with a member now that were acknowledged on receipt.
        dropped: Messages that were acknowledged on receipt and not handled.
    """

    name: str
    next_seq: int
    returned: deque[Pending] = field(default_factory=deque)
    pending: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    handled: int = 0
    redelivered: int = 0
    dead: int = 0
    lost: int = 0
    received: int = 0
    dropped: int = 0

    @property
    def in_hand(self) -> int:
        """Messages with a member now."""
        return len(self.pending) - len(self.returned) + self.received


class Stream:
    """Messages in order, up to a number of them.

    Args:
        name: Its name.
        max_length: Messages kept.
        lossy: Whether a full stream drops what a slow group has not seen.
        durable: Whether a journal keeps it.
        losses: Where it is counted and said what groups have lost.

    Attributes:
        published: Place of the next message.
        first_seq: Place of the oldest message held, or of the next one where none is.
        trimmed: Messages dropped.
        reserved: Messages that are on their way into it.
        news: Rings when there is something to hand out.
        moves: Rings when a group was handed a message, or is done with one.
    """

    def __init__(
        self, name: str, max_length: int, *, lossy: bool, durable: bool = True, losses: Losses | None = None
    ) -> None:
        self.name, self.max_length, self.lossy, self.durable = name, max_length, lossy, durable
        self.groups: dict[str, Group] = {}
        self._losses = Losses() if losses is None else losses
        self.published = self.first_seq = self.trimmed = self.reserved = 0
        self.news, self.moves = Bell(), Bell()
        self._held: deque[Envelope] = (
            deque()
        )  # its ends are near: groups read at the newest, or a full stream waits for them

    def __len__(self) -> int:
        return self.published - self.first_seq

    @property
    def needed_from(self) -> int:
        """Place of the oldest message that is held or in some group's hands."""
        return min([self.first_seq, *(min(group.pending) for group in self.groups.values() if group.pending)])

    @property
    def room(self) -> int:
        """How many messages can be appended without taking one from a group that has not seen it."""
        if self.lossy or not self.groups:
            return sys.maxsize
        seen = min([group.next_seq for group in self.groups.values()])
        return self.max_length + seen - self.published - self.reserved

    @property
    def is_idle(self) -> bool:
        """Whether every group is done with every message."""
        return not any(
            group.next_seq < self.published or group.pending or group.received for group in self.groups.values()
        )

    def join(self, name: str, start_from: str) -> Group:
        """Return a group, made at the oldest message held (``"0"``) or after the newest (``">"``) where it is new."""
        if name not in self.groups:
            first = self.first_seq if start_from == "0" else self.published
            self.groups[name] = Group(name, first)
        return self.groups[name]

    def restore(self, next_seq: int, messages: Sequence[tuple[int, Envelope]]) -> None:
        """Hold what an earlier process held, also where that is more than the limit."""
        self._held = deque(envelope for _, envelope in messages)
        self.published, self.first_seq = next_seq, next_seq - len(messages)

    def rejoin(self, name: str, next_seq: int, pending: Iterable[int]) -> None:
        """Make a group as an earlier process left it; what it was handed and has not settled comes first."""
        held = sorted(seq for seq in pending if self.first_seq <= seq < self.published)
        group = Group(name, max(next_seq, self.first_seq), pending=set(held))
        reason = "the process ended before the handler returned"
        group.returned.extend(Pending(seq, self._held[seq - self.first_seq], tries=1, reason=reason) for seq in held)
        self.groups[name] = group

    def extend(self, envelopes: Sequence[Envelope]) -> None:
        """Add messages, and trim the oldest beyond the limit; groups that had not seen them have lost them."""
        self._held.extend(envelopes)
        self.published += len(envelopes)
        if len(self) > self.max_length:
            self._trim(self.published - self.max_length)
        self.news.ring()

    def _trim(self, first_seq: int) -> None:
        for _ in range(self.first_seq, first_seq):
            self._held.popleft()
        self.trimmed += first_seq - self.first_seq
        self.first_seq = first_seq
        for group in self.groups.values():
            if group.next_seq < first_seq:
                group.lost += first_seq - group.next_seq
                self._losses.add(self.name, group.name, first_seq - group.next_seq)
                group.next_seq = first_seq

    def has_for(self, group: Group) -> bool:
        """Whether a group can be handed something."""
        return bool(group.returned) or group.next_seq < self.published

    def take(self, group: Group) -> Pending | None:
        """Hand the next message of a group out, given-back ones first, or None where there is none."""
        if group.returned:
            return group.returned.popleft()
        seq = group.next_seq
        if seq >= self.published:
            return None
        group.next_seq = seq + 1
        group.pending.add(seq)
        if self.moves.waiting:
            self.moves.ring()
        return Pending(seq, self._held[seq - self.first_seq])

    def settle(self, group: Group, seq: int) -> None:
        """Note that a group is done with a message for good."""
        group.pending.discard(seq)
        if self.moves.waiting:
            self.moves.ring()

    def give_back(self, group: Group, pending: Pending) -> None:
        """Take an unhandled message back; it stays ahead of every later one."""
        group.returned = deque(sorted([*group.returned, pending], key=lambda held: held.seq))
        self.news.ring()


class Streams:
    """All streams of a bus, each made when it is first named.

    Args:
        codec: Knows the declared streams.
        max_length: Messages kept per stream, where the topic does not allow fewer.
    """

    def __init__(self, codec: Codec, max_length: int) -> None:
        self._codec, self._max_length = codec, max_length
        self._streams: dict[str, Stream] = {}
        self._losses = Losses()

    def __getitem__(self, name: str) -> Stream:
        try:
            return self._streams[name]
        except KeyError:
            return self._streams.setdefault(name, self._made(name))

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def _made(self, name: str) -> Stream:
        topic, source = self._codec.topic(name), self._codec.topic(name.removesuffix(DEAD_SUFFIX))
        durable = source is None or source.durable
        if topic is None:
            lossy, length = name.endswith(DEAD_SUFFIX), self._max_length
        else:
            lossy, length = topic.lossy, min(topic.max_length, self._max_length)
        return Stream(name, length, lossy=lossy, durable=durable, losses=self._losses)
