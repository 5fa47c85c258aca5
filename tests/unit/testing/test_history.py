"""The checker passes every history of a bus that keeps its promises, and finds each way to break one."""

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from esper.testing.history import Breach, Event, History, Kind, Message, Promise, breaches, read

STREAM = "s"
MEMBERS = {"sole": ["only"], "shared": ["a", "b"]}


def named(writer: str, number: int) -> Message:
    return Message(STREAM, writer, number)


@dataclass
class Group:
    """A group of a bus that keeps its promises, and what its members hold."""

    name: str
    cursor: int = 0
    returned: list[Message] = field(default_factory=list)
    in_hand: dict[str, Message] = field(default_factory=dict)
    failed: dict[str, Message] = field(default_factory=dict)
    seen: set[Message] = field(default_factory=set)
    done: set[Message] = field(default_factory=set)
    lives: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Bus:
    """A bus as a list, whose every act is an event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stream: list[Message] = []
        self.numbers: dict[str, int] = defaultdict(int)
        self.groups = [Group(name) for name in MEMBERS]
        for group in self.groups:
            for member in MEMBERS[group.name]:
                self.note(Kind.JOINED, Message(STREAM, "", -1), group=group.name, member=member)

    def note(self, kind: Kind, message: Message, *, process: str = "writer", **more: object) -> None:
        known = {"group": "", "member": "", "redelivered": False} | more
        id = f"{message.writer}:{message.number}" if kind is not Kind.SENT and message.writer else ""
        self.events.append(Event(kind, len(self.events), process, *message, id=id, **known))  # type: ignore[arg-type]

    def publish(self, dice: Random) -> None:
        writer = dice.choice(["v", "w"])
        message = named(writer, self.numbers[writer])
        self.numbers[writer] += 1
        self.note(Kind.SENT, message)
        answered = dice.random() < 0.8
        if answered or dice.random() < 0.5:
            self.stream += [message] * (1 if dice.random() < 0.9 else 2)
        self.note(Kind.ACKNOWLEDGED if answered else Kind.REFUSED, message)

    def step(self, dice: Random, *, calm: bool = False) -> bool:
        """Let one member of one group do one thing; tell whether there was something to do."""
        group = dice.choice(self.groups)
        member = dice.choice(MEMBERS[group.name])
        if member in group.in_hand:
            self.end(
                group, member, "handle" if calm else dice.choice(["handle", "handle", "fail", "kill", "late", "bury"])
            )
        elif (message := self.next_for(group, member)) is not None:
            self.tell(Kind.HANDED, group, member, message, redelivered=message in group.seen)
            group.seen.add(message)
            group.in_hand[member] = message
        else:
            return False
        return True

    def next_for(self, group: Group, member: str) -> Message | None:
        if member in group.failed:
            return group.failed.pop(member)
        if group.returned:
            return group.returned.pop(0)
        if group.cursor == len(self.stream):
            return None
        group.cursor += 1
        return self.stream[group.cursor - 1]

    def end(self, group: Group, member: str, how: str) -> None:
        message = group.in_hand.pop(member)
        if how in ("handle", "late") and message not in group.done:
            group.done.add(message)
            self.tell(Kind.EFFECT, group, member, message)
        if how == "handle":
            self.tell(Kind.HANDLED, group, member, message)
        elif how == "fail":
            self.tell(Kind.FAILED, group, member, message)
            group.failed[member] = message
        elif how == "bury":
            self.tell(Kind.FAILED, group, member, message)
            self.tell(Kind.BURIED, group, member, message)
        else:  # killed, before its effect or behind it
            group.lives[member] += 1
            group.returned.insert(0, message)

    def tell(self, kind: Kind, group: Group, member: str, message: Message, **more: object) -> None:
        process = f"{group.name}.{member}.{group.lives[member]}"
        self.note(kind, message, process=process, group=group.name, member=member, **more)


def history(seed: int) -> list[Event]:
    """Return what happens on a bus that keeps its promises, with killed members, failures, and messages sent twice."""
    dice, bus = Random(seed), Bus()
    for _ in range(dice.randrange(10, 60)):
        bus.publish(dice) if dice.random() < 0.3 else bus.step(dice)
    for _ in range(3):
        bus.publish(dice)
    idle = 0
    while idle < 50:
        idle = 0 if bus.step(dice, calm=True) else idle + 1
    return bus.events


seeds = st.integers(0, 2**32)


@given(seeds)
def test_a_history_in_which_every_promise_was_kept_passes(seed: int) -> None:
    assert breaches(history(seed)) == []


def of(events: list[Event], *kinds: Kind, group: str = "sole") -> list[int]:
    """Return the places of events of some kinds about messages that were acknowledged and never buried."""
    acknowledged = {event.message for event in events if event.kind is Kind.ACKNOWLEDGED}
    buried = {event.message for event in events if event.kind is Kind.BURIED}
    return [
        place
        for place, event in enumerate(events)
        if event.kind in kinds and event.group in ("", group) and event.message in acknowledged - buried
    ]


def lose(events: list[Event], dice: Random) -> list[Event]:
    gone = events[dice.choice(of(events, Kind.EFFECT))].message
    return [event for event in events if not (event.kind is Kind.EFFECT and event.message == gone)]


def double(events: list[Event], dice: Random) -> list[Event]:
    twice = events[dice.choice(of(events, Kind.EFFECT))]
    return [*events, replace(twice, at_ns=len(events))]


def swap(events: list[Event], dice: Random) -> list[Event]:
    """Let the sole member be handed two neighbours of one writer the other way round."""
    first: dict[Message, int] = {}
    for place in of(events, Kind.HANDED):
        first.setdefault(events[place].message, place)
    pairs = [
        (one, other) for one in first for other in first if one.writer == other.writer and one.number < other.number
    ]
    one, other = dice.choice(pairs)
    names = {one: other, other: one}
    return [
        replace(event, number=names[event.message].number)
        if event.group == "sole" and event.message in names
        else event
        for event in events
    ]


def invent(events: list[Event], dice: Random) -> list[Event]:
    place = dice.choice(of(events, Kind.HANDED, Kind.EFFECT))
    return [*events, replace(events[place], at_ns=len(events), writer="nobody")]


def rename(events: list[Event], dice: Random) -> list[Event]:
    place = dice.choice(of(events, Kind.EFFECT))
    return [*events[:place], replace(events[place], id="another"), *events[place + 1 :]]


@pytest.mark.parametrize(
    ("mutation", "promise"),
    [
        (lose, Promise.LOST),
        (double, Promise.DOUBLED),
        (swap, Promise.DISORDERED),
        (invent, Promise.INVENTED),
        (rename, Promise.INVENTED),
    ],
)
@given(seed=seeds)
def test_one_change_to_it_is_found(
    mutation: Callable[[list[Event], Random], list[Event]], promise: Promise, seed: int
) -> None:
    events = history(seed)
    try:
        changed = mutation(events, Random(seed))
    except IndexError:
        reject()  # nothing there that could be changed so
    assert promise in {breach.promise for breach in breaches(changed)}


# -- one of each, by hand ------------------------------------------------------------------------------------------------


def told(*words: str) -> list[Breach]:
    """Return the breaches in a history given as ``kind number``, with ``process:`` in front where it is not the first."""
    events = []
    for at_ns, text in enumerate(("joined -1", *words)):
        process, _, rest = text.rpartition(":")
        kind, number, *marks = rest.split()
        about = Kind(kind) not in (Kind.JOINED, Kind.LEFT, Kind.VANISHED)
        name = process or "one"
        events.append(
            Event(
                Kind(kind), at_ns, name, STREAM, "w" if about else "", int(number),
                group="" if kind in ("sent", "acknowledged", "refused") else "g",
                member=name.partition(".")[0], redelivered="again" in marks,
            )
        )  # fmt: skip
    return breaches(events)


PUBLISHED = ("sent 0", "acknowledged 0", "sent 1", "acknowledged 1")
BOTH = (*PUBLISHED, "handed 0", "effect 0", "handed 1", "effect 1")


def test_a_whole_history_has_no_breach() -> None:
    assert told(*BOTH) == []


def test_a_message_that_was_refused_may_have_its_effect_or_none() -> None:
    assert told("sent 0", "refused 0") == []
    assert told("sent 0", "refused 0", "handed 0", "effect 0") == []
    assert told("sent 0") == []


def test_an_acknowledged_message_without_an_effect_is_lost_even_if_it_was_handled() -> None:
    (breach,) = told(*PUBLISHED, "handed 0", "effect 0", "handed 1", "handled 1")
    assert breach[:3] == (Promise.LOST, named("w", 1), "g")


def test_a_dead_letter_stands_for_its_message() -> None:
    assert told(*PUBLISHED, "handed 0", "effect 0", "handed 1", "failed 1", "buried 1") == []


def test_two_effects_are_a_breach_also_of_a_message_that_was_refused() -> None:
    (breach,) = told("sent 0", "refused 0", "handed 0", "effect 0", "handed 0 again", "effect 0")
    assert breach.promise is Promise.DOUBLED


def test_a_message_that_came_after_a_later_one_is_a_breach() -> None:
    (breach,) = told(*PUBLISHED, "handed 1", "effect 1", "handed 0", "effect 0")
    assert (breach.promise, breach.message.number) == (Promise.DISORDERED, 0)
    assert "after number 1" in breach.why


def test_a_sole_member_that_was_restarted_still_owes_the_order() -> None:
    assert (
        told(*PUBLISHED, "handed 0", "one.2:handed 0 again", "one.2:effect 0", "one.2:handed 1", "one.2:effect 1") == []
    )
    (breach,) = told(*PUBLISHED, "handed 1", "effect 1", "one.2:handed 0 again", "one.2:effect 0")
    assert breach.promise is Promise.DISORDERED


def test_a_refused_message_may_come_late() -> None:
    late = ("sent 0", "refused 0", "sent 1", "acknowledged 1", "handed 1", "effect 1", "handed 0", "effect 0")
    assert told(*late) == []


def test_a_message_that_failed_and_was_passed_over_is_a_breach() -> None:
    failing = (*PUBLISHED, "handed 0", "failed 0")
    assert told(*failing, "handed 0 again", "effect 0", "handed 1", "effect 1") == []
    (breach,) = told(*failing, "handed 1", "effect 1", "handed 0 again", "effect 0")
    assert (breach.promise, breach.message.number) == (Promise.DISORDERED, 0)
    assert "it failed" in breach.why


ONCE = (*PUBLISHED, "handed 0", "effect 0", "handed 1")
ANEW = ("handed 0", "handed 1", "effect 1")


@pytest.mark.parametrize(
    "old",
    [
        ("failed 1", "vanished -1"),
        ("vanished -1", "failed 1"),
        ("vanished -1", "handled 1", "sent 2", "acknowledged 2", "handed 2", "failed 2"),  # read with what was in hand
        ("vanished -1", "failed 1", "handed 1 again", "failed 1 again"),
    ],
)
def test_a_group_that_vanished_owes_no_retry_of_what_its_member_still_holds(old: tuple[str, ...]) -> None:
    rest = ("handed 2", "effect 2") if "sent 2" in old else ()
    assert told(*ONCE, *old, *ANEW, *rest) == []


@pytest.mark.parametrize("begun", ["one:handed 0", "one.2:joined -1"])
def test_a_group_that_vanished_owes_retries_once_it_begins_anew(begun: str) -> None:
    process = begun.partition(":")[0]
    rest = (f"{process}:handed 1", f"{process}:failed 1", *(f"{process}:{word}" for word in ANEW))
    (breach,) = told(*ONCE, "vanished -1", "handed 1 again", "failed 1", begun, *rest)
    assert (breach.promise, breach.message.number) == (Promise.DISORDERED, 1)


def test_a_second_member_may_take_over_late_but_not_mix_what_is_new() -> None:
    second = ("two:joined -1", *PUBLISHED, "handed 1", "effect 1")
    assert told(*second, "one:handed 0 again", "one:effect 0") == []
    assert told(*second, "two:left -1", "one:handed 0", "one:effect 0") == []
    (breach,) = told(*second, "one:handed 0", "one:effect 0")
    assert breach.promise is Promise.DISORDERED


def test_a_message_that_nobody_sent_is_a_breach() -> None:
    found = told(*BOTH, "handed 7")
    assert [breach.promise for breach in found] == [Promise.INVENTED]


# -- files -----------------------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_noted(tmp_path: Path) -> None:
    with History.at(tmp_path / "w1.jsonl") as writer, History.at(tmp_path / "r1.jsonl") as reader:
        writer.note(Kind.SENT, named("w", 0))
        reader.note(Kind.HANDED, named("w", 0), id="i", group="g", member="m", redelivered=True)
        writer.note(Kind.ACKNOWLEDGED, named("w", 0), id="i")
    events = read(tmp_path)
    assert [(event.kind, event.process) for event in events] == [
        (Kind.SENT, "w1"),
        (Kind.HANDED, "r1"),
        (Kind.ACKNOWLEDGED, "w1"),
    ]
    assert events[1] == Event(Kind.HANDED, events[1].at_ns, "r1", STREAM, "w", 0, "i", "g", "m", True)


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    with History.at(tmp_path / "w.jsonl") as writer:
        writer.note(Kind.SENT, named("w", 0))
    with (tmp_path / "w.jsonl").open("a") as file:
        file.write('{"kind": "ackno')
    assert [event.kind for event in read(tmp_path)] == [Kind.SENT]


KILLED = """
import sys
from pathlib import Path
from esper.testing.history import History, Kind, Message
history, n = History.at(Path(sys.argv[1])), 0
while True:
    history.note(Kind.SENT, Message("s", "w", n))
    n += 1
    if n == 100:
        print("running", flush=True)
"""


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "w.jsonl")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=20)
    numbers = [event.number for event in read(tmp_path)]
    assert len(numbers) >= 100
    assert numbers == list(range(len(numbers)))
