"""Seeded plans of what goes wrong on a bus, and when."""

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

TRAFFIC_S = 3.0
"""How long writers publish; every fault begins and ends within."""


class BusKind(StrEnum):
    """What carries the messages."""

    REDIS = "redis"
    """Redis Streams, between processes, through a proxy."""
    JOURNAL = "journal"
    """The in-process bus with its journal; readers and writers share its process."""


class Flaw(StrEnum):
    """A reader that is wrong on purpose."""

    NONE = "none"
    EARLY = "early"
    """Returns before its effect is durable: what it holds is lost with its process."""
    FORGETFUL = "forgetful"
    """Does not look at ids: what comes again has its effect again."""


class FaultKind(StrEnum):
    """What can go wrong."""

    KILL = "kill"
    FREEZE = "freeze"
    STOP = "stop"
    """Ended in good order, and started again."""
    FULL_DISK = "full disk"
    LEAP = "leap"
    """The time of day jumps, and stays there."""
    DESTROY = "destroy"
    """Somebody destroys a consumer group."""
    RESET = "reset"
    CUT = "cut"
    HOLD = "hold"
    SWALLOW = "swallow"
    """Half-open connections."""
    DELAY = "delay"
    """One command arrives long after it was given up."""
    SLOW = "slow"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at_s: When, from the beginning of the traffic.
        kind: What.
        target: To whom: a process, the server, or the proxy of a side.
        lasts_s: How long; a killed process is started again after that.
        amount: How much, as the kind of fault understands it, in [0, 1].
    """

    at_s: float
    kind: FaultKind
    target: str
    lasts_s: float
    amount: float

    def __str__(self) -> str:
        return f"{self.at_s:.2f} s: {self.kind} {self.target} ({self.lasts_s:.2f} s)"


@dataclass(frozen=True)
class Plan:
    """A schedule.

    Attributes:
        seed: Of everything in it.
        bus: What carries the messages.
        faults: What goes wrong.
        flaw: What is wrong with the readers.
        batch: Messages that a reader reads at once.
        at_once: Messages that a writer publishes at once.
        longest: Messages that a stream of the in-process bus keeps, before a writer waits.
        pause_s: How long a writer rests between messages, at most.
        work_s: How long a handler takes, at most.
        fails: How often a handler fails.
        tries: How often a writer publishes a message that was refused, under one id.
        keeps_name: Whether members of the shared group are started again under their name.
    """

    seed: int
    bus: BusKind
    faults: tuple[Fault, ...]
    flaw: Flaw
    batch: int
    at_once: int
    longest: int
    pause_s: float
    work_s: float
    fails: float
    tries: int
    keeps_name: bool


READERS = ("sole", "left", "right")
"""The sole member of one group, and two that share another."""
WRITERS = ("one", "two")

_PROCESS = (FaultKind.KILL, FaultKind.KILL, FaultKind.FREEZE, FaultKind.STOP, FaultKind.LEAP)
_NETWORK = (
    FaultKind.RESET, FaultKind.CUT, FaultKind.HOLD, FaultKind.SWALLOW, FaultKind.DELAY, FaultKind.SLOW, FaultKind.REFUSE
)  # fmt: skip
_SERVER = (FaultKind.KILL, FaultKind.KILL, FaultKind.FREEZE, FaultKind.LEAP, FaultKind.DESTROY)
_JOURNAL = (*_PROCESS, FaultKind.FULL_DISK)


def plan(seed: int, *, flaw: Flaw = Flaw.NONE, bus: BusKind | None = None) -> Plan:
    """Draw a schedule; the same seed draws the same."""
    dice = Random(seed)
    drawn = BusKind.REDIS if dice.random() < 0.7 else BusKind.JOURNAL
    kind = bus or drawn
    drawn_plan = Plan(
        seed=seed,
        bus=kind,
        faults=tuple(
            sorted(
                (_fault(dice, kind) for _ in range(dice.choice((dice.randint(2, 6), dice.randint(8, 12))))),
                key=lambda fault: fault.at_s,
            )
        ),
        flaw=flaw,
        batch=dice.choice((1, 8, 64)),
        at_once=dice.choice((1, 1, 10)),
        longest=dice.choice((50, 1000)),
        pause_s=dice.choice((0.005, 0.015, 0.04)),
        work_s=dice.choice((0.0, 0.002, 0.01)),
        fails=dice.choice((0.0, 0.02, 0.1)),
        tries=dice.choice((1, 3)),
        keeps_name=dice.random() < 0.5,
    )
    return drawn_plan if flaw is Flaw.NONE else _controlled(drawn_plan)


def _controlled(plan: Plan) -> Plan:
    """Return a schedule in which a flaw must show: readers die while they hold messages that they have handled."""
    kills = tuple(Fault(at_s, FaultKind.KILL, "sole", 0.1, 1.0) for at_s in (0.9, 1.6, 2.3))
    return replace(plan, bus=BusKind.REDIS, faults=kills, batch=64, at_once=1, pause_s=0.005, work_s=0.002, fails=0.0)


def _fault(dice: Random, bus: BusKind) -> Fault:
    begins = dice.uniform(0.1, TRAFFIC_S - 0.3)
    lasts = min(dice.choice((0.05, 0.3, 0.8, 1.5)) * dice.uniform(0.6, 1.2), TRAFFIC_S - begins)
    if bus is BusKind.JOURNAL:
        kind, target = dice.choice(_JOURNAL), "bus"
    else:
        kinds, targets = dice.choice(
            ((_SERVER, ("server",)), (_PROCESS, READERS), (_PROCESS, WRITERS), (_NETWORK, ("readers", "writers")))
        )
        kind, target = dice.choice(kinds), dice.choice(targets)
    return Fault(begins, kind, target, lasts, dice.random())
