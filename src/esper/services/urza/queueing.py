"""Whose turn it is, and when it will be somebody's.

A step of priority is worth `AGEING_S` of waiting. A job is served before another where it is that much more urgent than it is
late, so that the order of two jobs never changes while they wait: it is that of ``queued_at - priority * AGEING_S``. However
many urgent jobs come, one of priority 1 waits for none that came more than nine such spans after it.
"""

from statistics import median
from typing import TypeAlias

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.kernel import JobPhase
from esper.services.urza.models import CompileJobRow, JobStatus

AGEING_S = 30.0
"""Some hundred builds of the catalogue on one core: a burst of a training passes before strangers, a flood does not for ever."""
RECENT = 20
"""Latest builds of a level from which the time of the next one is taken."""

Order: TypeAlias = tuple[ColumnElement[float], ColumnElement[float], ColumnElement[str]]


def in_turn() -> Order:
    """Return what waiting jobs are ordered by, the next one first."""
    row = CompileJobRow
    return (row.queued_at - row.priority * AGEING_S, row.queued_at, row.id)  # type: ignore[return-value]


def _ahead_of(job: CompileJobRow) -> ColumnElement[bool]:
    place = (job.queued_at - job.priority * AGEING_S, job.queued_at, job.id)
    return (CompileJobRow.status == JobStatus.QUEUED) & (tuple_(*in_turn()) < tuple_(*place))


async def position_of(session: AsyncSession, job: CompileJobRow) -> int:
    """Return the place of a waiting job in the queue, from 1."""
    ahead = select(func.count()).select_from(CompileJobRow).where(_ahead_of(job))
    return int(await session.scalar(ahead) or 0) + 1


async def wait_of(session: AsyncSession, job: CompileJobRow, now_s: float) -> float | None:
    """Return in how many seconds a waiting job will be done, if nothing more urgent comes.

    What is ahead of it and what is at work take the median of the latest jobs of their phase and level, and as many are worked
    on at a time as are now.

    Args:
        session: Sees the queue.
        job: Waits.
        now_s: Seconds since the epoch.

    Returns:
        The seconds; None while no job of a kind that matters was measured.
    """
    row = CompileJobRow
    kind = (row.phase, _level())
    waiting = (await session.execute(select(*kind, func.count()).where(_ahead_of(job)).group_by(*kind))).all()
    at_work = (await session.execute(select(*kind, row.claimed_at).where(row.status == JobStatus.LEASED))).all()
    own = (job.phase, str(job.build["level"]))
    needed = {own, *((phase, level) for phase, level, _ in (*waiting, *at_work))}
    typical = {one: await typical_s(session, *one) for one in needed}
    known = {one: seconds for one, seconds in typical.items() if seconds is not None}
    if len(known) < len(typical):
        return None
    before_s: float = sum(known[phase, level] * count for phase, level, count in waiting)
    before_s += sum(max(0.0, known[phase, level] - (now_s - (since_s or now_s))) for phase, level, since_s in at_work)
    return before_s / max(1, len(at_work)) + known[own]


def _level() -> ColumnElement[str]:
    level: ColumnElement[str] = CompileJobRow.build["level"].as_string()
    return level


async def typical_s(session: AsyncSession, phase: JobPhase, level: str) -> float | None:
    """Return the median time of the latest jobs of a kind that came to an end, or None where there was none."""
    row = CompileJobRow
    latest = (
        select(row.ended_at - row.claimed_at)
        .where(row.status == JobStatus.DONE, row.phase == phase, _level() == level)
        .order_by(row.ended_at.desc())
        .limit(RECENT)
    )
    took = [float(seconds) for seconds in await session.scalars(latest) if seconds is not None]
    return median(took) if took else None
