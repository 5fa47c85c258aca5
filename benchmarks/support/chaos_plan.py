"""Seeded plans of what goes wrong on a bus, and when."""

from dataclasses import dataclass
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
    """The wall clock jumps."""
    RESET = "reset"
    CUT = "cut"
    HOLD = "hold"
    SWALLOW = "swallow"
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
        pause_s: How long a writer rests between messages, at most.
        work_s: How long a handler takes, at most.
        fails: How often a handler fails.
        keeps_name: Whether members of the shared group are started again under their name.
    """

    seed: int
    bus: BusKind
    faults: tuple[Fault, ...]
    flaw: Flaw
    batch: int
    pause_s: float
    work_s: float
    fails: float
    keeps_name: bool


READERS = ("sole", "left", "right")
"""The sole member of one group, and two that share another."""
WRITERS = ("one", "two")

_PROCESS = (FaultKind.KILL, FaultKind.FREEZE, FaultKind.STOP)
_NETWORK = (FaultKind.RESET, FaultKind.CUT, FaultKind.HOLD, FaultKind.SWALLOW, FaultKind.SLOW, FaultKind.REFUSE)
_SERVER = (FaultKind.KILL, FaultKind.FREEZE)
_JOURNAL = (FaultKind.KILL, FaultKind.KILL, FaultKind.FREEZE, FaultKind.STOP, FaultKind.FULL_DISK)


def plan(seed: int, *, flaw: Flaw = Flaw.NONE, bus: BusKind | None = None) -> Plan:
    """Draw a schedule; the same seed draws the same."""
    dice = Random(seed)
    drawn = BusKind.REDIS if dice.random() < 0.7 else BusKind.JOURNAL
    kind = bus or drawn
    faults = [_fault(dice, kind) for _ in range(dice.randint(2, 6))]
    if flaw is not Flaw.NONE:  # the flaw shows where a reader dies with messages in hand
        target = "bus" if kind is BusKind.JOURNAL else dice.choice(READERS)
        faults.append(Fault(TRAFFIC_S / 2, FaultKind.KILL, target, 0.1, 1.0))
    return Plan(
        seed=seed,
        bus=kind,
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        flaw=flaw,
        batch=dice.choice((1, 8, 64)),
        pause_s=dice.choice((0.005, 0.015, 0.04)),
        work_s=dice.choice((0.0, 0.002, 0.01)),
        fails=dice.choice((0.0, 0.02, 0.1)),
        keeps_name=dice.random() < 0.5,
    )


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
