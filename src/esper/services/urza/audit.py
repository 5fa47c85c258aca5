"""Who wrote what: a row of the audit log in the transaction of every write."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from esper.contracts.kernel import JsonObject
from esper.contracts.store import AuditRecord
from esper.services.urza.access import AuditRow

if TYPE_CHECKING:
    from esper.services.urza.database import Database


@dataclass(frozen=True)
class Deed:
    """What somebody asked for.

    Attributes:
        actor: Who: the id of a key, or ``loopback``.
        action: Method of the request, or verb of the command.
        subject: Path of the request, or what the command was about.
        request_id: Id of the request, which the log has too.
    """

    actor: str
    action: str
    subject: str
    request_id: str = ""


_deed: ContextVar[Deed | None] = ContextVar("esper_deed", default=None)


@contextmanager
def done_by(deed: Deed | None) -> Iterator[None]:
    """Let every transaction within the block that writes say who it was; None says nothing."""
    token = _deed.set(deed)
    try:
        yield
    finally:
        _deed.reset(token)


def deed_at_hand() -> Deed | None:
    """Return what is being done, where somebody said so."""
    return _deed.get()


async def audit_log(database: "Database", *, subject: str | None, before: int | None, limit: int) -> list[AuditRecord]:
    """Return the newest writes first.

    Args:
        database: Where they are.
        subject: Only those about this.
        before: Only those with a smaller id.
        limit: How many at most.
    """
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    if before is not None:
        query = query.where(AuditRow.id < before)
    async with database.reading() as session:
        return [AuditRecord.model_validate(row) for row in await session.scalars(query)]


def note(session: Session) -> None:
    """Write who does what, where somebody is known to: the row is committed with the write, or not at all."""
    deed = _deed.get()
    if deed is None:
        return
    details: JsonObject = {"request_id": deed.request_id} if deed.request_id else {}
    session.add(AuditRow(actor=deed.actor[:128], action=deed.action[:64], subject=deed.subject[:128], details=details))
    session.flush()
