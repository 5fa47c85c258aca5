"""Messages in a member's hands on Redis, and what the members of one process have done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from esper.contracts.envelope import Attempt


@dataclass
class GroupCounts:
    """What the members of one process have done for a group.

    Attributes:
        handled: Messages acknowledged.
        redelivered: Tries after the first.
        dead: Messages that went to the dead letters.
        lost: Messages that the group lost while this process had a member of it: trimmed before the group saw them, whoever
            trimmed, or while they were pending.
        claimed: Messages taken over from members that showed no sign of life.
        leases_lost: Leases that ran out although the handler still ran.
        regrouped: Times that the group had vanished and was made again.
        outages: Times that Redis did not answer.
        dropped: Messages that were acknowledged on receipt and not handled.
        forgotten: Names of members that were gone for long and held nothing, taken from groups of the stream.
        collected: Groups of runs that nobody was a member of for long, destroyed.
    """

    handled: int = 0
    redelivered: int = 0
    dead: int = 0
    lost: int = 0
    claimed: int = 0
    leases_lost: int = 0
    regrouped: int = 0
    outages: int = 0
    dropped: int = 0
    forgotten: int = 0
    collected: int = 0

    def copy(self) -> "GroupCounts":
        """Return the same numbers, which stay."""
        return replace(self)


class Entry:
    """A message in a member's hands.

    Attributes:
        at: Its place in the stream, as Redis writes it.
        fields: What it holds, names and values by turns.
        tries: How often it was handed out.
        reason: Why the last try failed.
        history: The tries that failed, in this process.
    """

    __slots__ = ("at", "fields", "history", "reason", "tries")

    def __init__(self, at: bytes, fields: Sequence[bytes], tries: int = 0) -> None:
        self.at, self.fields, self.tries = at, fields, tries
        self.reason = "no member that had it lived to acknowledge it"
        self.history: tuple[Attempt, ...] = ()


class Hands:
    """What one member holds.

    Attributes:
        held: Messages that were read and are not settled, the one in hand first.
        known: Those whose tries this process knows; Redis counts answers that were lost, too.
        acks: Places of messages that were handled and are not acknowledged yet.
    """

    def __init__(self) -> None:
        self.held: list[Entry] = []
        self.known: dict[bytes, Entry] = {}
        self.acks: list[bytes] = []

    def drop(self, entry: Entry) -> None:
        """Be done with a message."""
        self.known.pop(entry.at, None)
        if self.held and self.held[0] is entry:
            del self.held[0]

    def put_off(self) -> None:
        """Hold nothing for now; what is known of each message stays."""
        self.known |= {entry.at: entry for entry in self.held}
        self.held.clear()

    def forget(self) -> None:
        """Hold nothing, and know nothing."""
        for held in (self.held, self.known, self.acks):
            held.clear()
