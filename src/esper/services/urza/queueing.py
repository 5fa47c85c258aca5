"""Whose turn it is, and when it will be somebody's.

A step of priority is worth `AGEING_S` of waiting. A job is served before another where it is that much more urgent than it is
late, so that the order of two jobs never changes while they wait: it is that of ``queued_at - priority * AGEING_S``. However
many urgent jobs come, one of priority 1 waits for none that came more than nine such spans after it.
"""

from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from sqlalchemy import ColumnElement, Double, Select, bindparam, func, select, tuple_
from sqlalchemy.orm import Session

from esper.contracts.kernel import JobPhase
from esper.ports import Clock
from esper.services.urza.models import CompileJobRow, JobStatus

AGEING_S = 30.0
"""Some hundred builds of the catalogue on one core: a burst of a training passes before strangers, a flood does not for ever."""
RECENT = 20
"""Latest builds of a level from which the time of the next one is taken."""

LONGEST_LINE = 1000
"""Builds that hear again where they stand; those behind them hear once they are nearer."""

PACE_FOR_S = 1.0
"""How long a median counts; a store that takes in a hundred blueprints need not look a hundred times."""

Kind: TypeAlias = tuple[JobPhase, str]
"""Phase and level."""
Order: TypeAlias = tuple[ColumnElement[float], ColumnElement[float], ColumnElement[str]]


def in_turn() -> Order:
    """Return what waiting jobs are ordered by, the next one first."""
    row = CompileJobRow
    return (row.queued_at - row.priority * AGEING_S, row.queued_at, row.id)  # type: ignore[return-value]


def _level() -> ColumnElement[str]:
    level: ColumnElement[str] = CompileJobRow.build["level"].as_string()
    return level


def _ahead() -> Select[JobPhase, str, int]:
    row, kind = CompileJobRow, (CompileJobRow.phase, _level())
    place = tuple_(bindparam("turn", type_=Double), bindparam("queued_at", type_=Double), bindparam("job_id"))
    ahead = (row.status == JobStatus.QUEUED) & (row.phase != JobPhase.REVIEW) & (tuple_(*in_turn()) < place)
    return select(*kind, func.count()).where(ahead).group_by(*kind)


_AHEAD = _ahead()
_AT_WORK = select(CompileJobRow.phase, _level(), CompileJobRow.claimed_at).where(
    CompileJobRow.status == JobStatus.LEASED, CompileJobRow.phase != JobPhase.REVIEW
)


_LINE = (
    select(CompileJobRow.id, CompileJobRow.blueprint_id, CompileJobRow.phase, _level())
    .where(CompileJobRow.status == JobStatus.QUEUED, CompileJobRow.phase != JobPhase.REVIEW)
    .order_by(*in_turn())
    .limit(LONGEST_LINE)
)
_LATEST = (
    select(CompileJobRow.ended_at - CompileJobRow.claimed_at)
    .where(
        CompileJobRow.status == JobStatus.DONE,
        CompileJobRow.phase == bindparam("phase"),
        _level() == bindparam("level"),
    )
    .order_by(CompileJobRow.ended_at.desc())
    .limit(RECENT)
)


@dataclass(frozen=True)
class Turn:
    """When it will be a waiting job's turn.

    Attributes:
        position: Its place in the queue, from 1.
        wait_s: Seconds until it will be done, if nothing more urgent comes; None while no job of a kind that matters was
            measured.
    """

    position: int
    wait_s: float | None


@dataclass(frozen=True)
class Waiting:
    """A build that waits.

    Attributes:
        job_id: Its job.
        blueprint_id: What is to be built.
        turn: When it will be its turn.
    """

    job_id: str
    blueprint_id: str
    turn: Turn


class Pace:
    """How long jobs take: the median of the latest of their phase and level, looked up once a second.

    Args:
        clock: Tells when.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[Kind, tuple[float, float | None]] = {}

    def turn_of(self, session: Session, job: CompileJobRow) -> Turn:
        """Return when it will be the turn of a waiting job.

        What is ahead of it and what is at work take as long as is usual, and as many are worked on at a time as are now.

        Args:
            session: Sees the queue.
            job: Waits.
        """
        now_s, turn = self._clock.now_s(), job.queued_at - job.priority * AGEING_S
        place = {"turn": turn, "queued_at": job.queued_at, "job_id": job.id}
        waiting = session.execute(_AHEAD, place).all()
        at_work = session.execute(_AT_WORK).all()
        position = 1 + sum(count for _, _, count in waiting)
        own = (job.phase, str(job.build["level"]))
        needed = {own, *((phase, level) for phase, level, _ in (*waiting, *at_work))}
        usual = {one: self._usual_s(session, one) for one in needed}
        known = {one: seconds for one, seconds in usual.items() if seconds is not None}
        if len(known) < len(usual):
            return Turn(position, None)
        before_s: float = sum(known[phase, level] * count for phase, level, count in waiting)
        before_s += sum(
            max(0.0, known[phase, level] - (now_s - (since_s or now_s))) for phase, level, since_s in at_work
        )
        return Turn(position, before_s / max(1, len(at_work)) + known[own])

    def line(self, session: Session) -> list[Waiting]:
        """Return the first builds that wait, as many as are told where they stand, in the order of their turns."""
        at_work = session.execute(_AT_WORK).all()
        hands, now_s = max(1, len(at_work)), self._clock.now_s()
        before_s: float | None = 0.0
        for phase, level, since_s in at_work:
            usual_s = self._usual_s(session, (phase, level))
            left_s = None if usual_s is None else max(0.0, usual_s - (now_s - (since_s or now_s)))
            before_s = _sum(before_s, left_s)
        found: list[Waiting] = []
        for position, (job_id, blueprint_id, phase, level) in enumerate(session.execute(_LINE), start=1):
            own_s = self._usual_s(session, (phase, level))
            if phase is JobPhase.BUILD:
                wait_s = None if before_s is None else _sum(before_s / hands, own_s)
                found.append(Waiting(job_id, blueprint_id, Turn(position, wait_s)))
            before_s = _sum(before_s, own_s)
        return found

    def _usual_s(self, session: Session, kind: Kind) -> float | None:
        """Return the median time of the latest jobs of a kind that came to an end, or None where there was none."""
        until_s, seconds = self._known.get(kind, (0.0, None))
        if seconds is None or self._clock.now_s() >= until_s:
            seconds = _median_s(session, kind)
            self._known[kind] = (self._clock.now_s() + PACE_FOR_S, seconds)
        return seconds


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _median_s(session: Session, kind: Kind) -> float | None:
    phase, level = kind
    took = session.execute(_LATEST, {"phase": phase, "level": level}).scalars()
    seconds = [float(one) for one in took if one is not None]
    return median(seconds) if seconds else None
