"""The envelope in which every message travels."""

from datetime import datetime

import msgspec

from esper.contracts.ids import MessageId


class Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message on the bus.

    Attributes:
        type: Name of the body's contract, or ``dict`` for plain data.
        version: Version of that contract.
        id: Names the message for ever; handlers de-duplicate by it.
        run_id: The run that it belongs to, or None.
        sent_at: When it was published, in UTC.
        traceparent: W3C trace context, or None.
        body: The encoded body.
    """

    type: str
    version: int
    id: MessageId
    run_id: str | None
    sent_at: datetime
    traceparent: str | None
    body: bytes


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A try at a message that failed.

    Attributes:
        at: When, in UTC.
        reason: What the handler said.
    """

    at: datetime
    reason: str


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that no try could deliver, as it lies in the stream ``{stream}.dead``.

    Attributes:
        stream: Where it came from.
        group: The group that could not handle it.
        tries: How often it was handed out.
        reason: What the handler said at the last try.
        envelope: The message as it was sent.
        history: The tries of the member that buried it, oldest first; those of members that died are not known.
    """

    stream: str
    group: str
    tries: int
    reason: str
    envelope: Envelope
    history: tuple[Attempt, ...] = ()
