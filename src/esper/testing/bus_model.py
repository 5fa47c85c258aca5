"""What a bus must do, as plain bookkeeping: it is told what happened, and objects to what must not."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.ports import Acknowledge


class LawBroken(AssertionError):
    """A bus has done what no bus may do."""


@dataclass(frozen=True)
class Traits:
    """What one bus may do that another may not; the rest is the same for all.

    Attributes:
        max_tries: How often it hands a message out.
        max_length: Messages that its streams keep.
        survives: Whether what it holds survives a restart.
        keeps_tries: Whether tries are still known after a restart.
        keeps_pending: Whether what is in a group's hands outlives its trimming.
        trims_late: Whether what was trimmed may be there again after a restart.
        counts_received: Whether a message that was acknowledged on receipt counts as unfinished while it is handled.
    """

    max_tries: int = 3
    max_length: int = 6
    survives: bool = True
    keeps_tries: bool = True
    keeps_pending: bool = True
    trims_late: bool = False
    counts_received: bool = False


@dataclass
class Hand:
    """A message in a member's hands.

    Attributes:
        id: The message.
        tries: How often it was handed out.
        retrying: Whether the last try failed, so that the same member must be handed it again before anything else.
    """

    id: str
    tries: int
    retrying: bool = False


@dataclass(eq=False)
class MemberModel:
    """One member of a group."""

    group: str
    acknowledge: Acknowledge
    hand: Hand | None = None


@dataclass
class GroupModel:
    """How far a group has come.

    Attributes:
        next: Place of the next message that it will be handed for the first time.
        seen: Place behind the last one that it was handed for the first time.
        returned: Messages whose member ended, with their tries.
        lost: Messages that were trimmed before the group saw them, since the bus was opened.
        maybe_lost: Messages that were trimmed while the group had them, which a bus may count as well.
        ghosts: Those of them that nobody has, and that a bus may count as unfinished until it finds out.
        handled: Messages that its handlers returned from, since the bus was opened.
    """

    next: int
    seen: int
    returned: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    maybe_lost: int = 0
    ghosts: int = 0
    handled: int = 0


class BusModel:
    """One stream with its groups, members and dead letters.

    Args:
        traits: Of the bus.
    """

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.members: list[MemberModel] = []
        self._forget()

    def _forget(self) -> None:
        self.log: list[str] = []
        self.first = 0
        self.groups: dict[str, GroupModel] = {}
        self.dead: list[tuple[str, str, int]] = []

    def published(self, message_id: str) -> None:
        """Take note of a message, and of what it pushes out."""
        if message_id in self.log:
            raise LawBroken(f"two messages have the id {message_id}")
        self.log.append(message_id)
        before, self.first = self.first, max(self.first, len(self.log) - self.traits.max_length)
        for name, group in self.groups.items():
            group.lost += max(0, self.first - group.next)
            group.next = max(group.next, self.first)
            if not self.traits.keeps_pending:
                trimmed = self.log[before : self.first]
                group.maybe_lost += sum(
                    m.group == name and m.hand is not None and m.hand.id in trimmed for m in self.members
                )
                gone = [held for held in group.returned if held not in self.held]
                group.maybe_lost += len(gone)
                group.ghosts += len(gone)
                for held in gone:
                    del group.returned[held]

    def joined(self, group: str, start: str, acknowledge: Acknowledge) -> MemberModel:
        """Take note of a member, and of its group where that is new."""
        if group not in self.groups:
            begins = self.first if start == "0" else len(self.log)
            self.groups[group] = GroupModel(begins, begins)
        member = MemberModel(group, acknowledge)
        self.members.append(member)
        return member

    def delivered(self, member: MemberModel, message_id: str, *, redelivered: bool) -> None:
        """Take note that a member is handed a message, or object."""
        group, hand = self.groups[member.group], member.hand
        if hand is not None and hand.retrying and hand.id == message_id:
            member.hand = Hand(message_id, hand.tries + 1)
        elif hand is not None and not self._may_vanish(hand):
            raise LawBroken(f"{message_id} is handed to a member that has {hand} still")
        elif message_id in group.returned:
            member.hand = Hand(message_id, group.returned.pop(message_id) + 1)
        elif group.next < len(self.log) and self.log[group.next] == message_id:
            group.next += 1
            group.seen = group.next
            member.hand = Hand(message_id, 1)
        else:
            raise LawBroken(f"group {member.group} is handed {self._place(message_id)}; its next one is {group.next}")
        if member.hand.tries > self.traits.max_tries:
            raise LawBroken(f"{message_id} is handed out for the {member.hand.tries}th time")
        if redelivered != (member.hand.tries > 1):
            raise LawBroken(f"{message_id} is marked redelivered={redelivered} in try {member.hand.tries}")

    def acknowledged(self, member: MemberModel) -> None:
        """Take note that a handler returned."""
        self.groups[member.group].handled += 1
        member.hand = None

    def failed(self, member: MemberModel) -> None:
        """Take note that a handler raised."""
        hand = _in(member)
        if member.acknowledge is Acknowledge.ON_RECEIPT:
            member.hand = None
        elif hand.tries >= self.traits.max_tries:
            self._bury(member.group, hand.id, hand.tries)
            member.hand = None
        else:
            hand.retrying = True

    def ended(self, member: MemberModel) -> None:
        """Take note that a member is gone, whatever it held."""
        self.members.remove(member)
        hand, group = member.hand, self.groups[member.group]
        if hand is None or member.acknowledge is Acknowledge.ON_RECEIPT:
            return
        if self.traits.keeps_pending or hand.id in self.held:
            group.returned[hand.id] = hand.tries
        else:
            group.ghosts += 1

    def restarted(self) -> None:
        """Take note that the bus came back without its members."""
        for member in list(self.members):
            self.ended(member)
        if not self.traits.survives:
            self._forget()
        for group in self.groups.values():
            group.lost, group.maybe_lost, group.handled = 0, group.ghosts, 0  # it may find the ghosts now
            if not self.traits.keeps_tries:
                group.returned = dict.fromkeys(group.returned, 1)

    def found(self, held: int, depths: dict[str, int]) -> None:
        """Take note of what a bus that trims late holds after a restart: more than before, but nothing twice."""
        first = len(self.log) - held
        if first > self.first:
            raise LawBroken(f"after the restart only {held} messages are held, in place of {len(self.held)}")
        self.first = first
        for name, group in self.groups.items():
            begins = len(self.log) + len(group.returned) - depths.get(name, 0)
            if not group.seen <= begins <= group.next:
                raise LawBroken(
                    f"after the restart group {name} goes on at {begins}, not between {group.seen} and {group.next}"
                )
            group.next = begins

    def bury_spent(self, buried: Sequence[tuple[str, str, int]]) -> None:
        """Bury what has no try left, where a member is free to find that out, or was before it was handed something else."""
        for name, group in self.groups.items():
            for message_id, tries in list(group.returned.items()):
                if tries >= self.traits.max_tries and (self._idle(name) or (name, message_id, tries) in buried):
                    del group.returned[message_id]
                    self._bury(name, message_id, tries)

    def due(self) -> str:
        """Say what must still be handed out now, or nothing."""
        for member in self.members:
            if member.hand is not None and member.hand.retrying and not self._may_vanish(member.hand):
                return f"{member.hand} must come again"
        for name, group in self.groups.items():
            waits = [*group.returned, *self.log[group.next :]]
            if waits and self._idle(name):
                return f"group {name} waits for {[self._place(message_id) for message_id in waits]}"
        return ""

    def depth(self, name: str) -> range:
        """Return how many messages a group may not have finished."""
        group = self.groups[name]
        in_hand = [
            member.hand.id
            for member in self.members
            if member.group == name and member.hand is not None
            if member.acknowledge is Acknowledge.AFTER_HANDLING or self.traits.counts_received
        ]
        most = len(self.log) - group.next + len(group.returned) + len(in_hand)
        if self.traits.keeps_pending:
            return range(most, most + 1)
        trimmed = sum(message_id not in self.held for message_id in in_hand)
        return range(most - trimmed, most + group.ghosts + 1)

    @property
    def held(self) -> list[str]:
        """Messages that were not trimmed."""
        return self.log[self.first :]

    def _may_vanish(self, hand: Hand) -> bool:
        """Whether a message whose try has failed may be gone, because it was trimmed meanwhile."""
        return hand.retrying and not self.traits.keeps_pending and hand.id not in self.held

    def _idle(self, group: str) -> bool:
        return any(member.group == group and member.hand is None for member in self.members)

    def _bury(self, group: str, message_id: str, tries: int) -> None:
        self.dead.append((group, message_id, tries))

    def _place(self, message_id: str) -> str:
        return f"number {self.log.index(message_id)}" if message_id in self.log else f"{message_id}, which nobody sent"


def _in(member: MemberModel) -> Hand:
    if member.hand is None:
        raise LawBroken("a member without a message was asked to settle one")
    return member.hand
