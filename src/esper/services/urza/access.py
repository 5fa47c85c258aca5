"""Tables of who may use the store, and of what they did."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from esper.contracts.kernel import JsonObject
from esper.services.urza.base import DIGEST, NAME, Base, now


class ApiKeyRow(Base):
    """A key of the HTTP service; only its digest is kept.

    Attributes:
        id: Its public part, by which it is looked up and named in the audit log.
        key_hash: Digest of the secret.
        scopes: Words of ``read``, ``write`` and ``admin``, with commas between.
        rotated_from: The key whose place it took.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(NAME)
    key_hash: Mapped[str] = mapped_column(DIGEST, unique=True)
    scopes: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    rotated_from: Mapped[str | None] = mapped_column(String(64), ForeignKey("api_keys.id"))


class AuditRow(Base):
    """One write: who did what to which thing, written in the transaction of the write itself."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_subject", "subject", "id"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=now, index=True)
    actor: Mapped[str] = mapped_column(NAME)
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(NAME)
    details: Mapped[JsonObject] = mapped_column(JSON, default=dict)


class IdempotencyRow(Base):
    """The answer that a request with an idempotency key got, to be given again.

    Attributes:
        key: The caller and the key that they chose.
        request_hash: Digest of method, path and body: the same key with another request is a mistake.
        status: HTTP status of the answer.
    """

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(256), primary_key=True)
    request_hash: Mapped[str] = mapped_column(DIGEST)
    status: Mapped[int] = mapped_column(Integer, nullable=True)  # as migration 0002 made it; nobody writes NULL
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
