"""What came of grafts, counted from their outcomes."""

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from esper.contracts.adaptation import Verdict
from esper.contracts.store import OutcomeStatistics
from esper.services.urza.models import OutcomeRow


async def statistics(session: AsyncSession, condition: ColumnElement[bool]) -> OutcomeStatistics:
    """Return the counts and the mean gain of the outcomes that fulfil a condition."""
    counts = {verdict.value: func.count().filter(OutcomeRow.verdict == verdict.value) for verdict in Verdict}
    query = select(
        *(count.label(name) for name, count in counts.items()),
        func.avg(OutcomeRow.gain).label("mean_gain"),
        func.count(OutcomeRow.gain).label("measured"),
    ).where(condition)
    row = (await session.execute(query)).one()
    return OutcomeStatistics.model_validate(dict(row._mapping))
