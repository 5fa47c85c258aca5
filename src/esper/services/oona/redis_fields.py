"""An envelope as the fields of one entry of a Redis stream, and names of streams as Redis keys."""

from collections.abc import Sequence
from datetime import datetime
from typing import cast

import msgspec

from esper.contracts.envelope import Envelope
from esper.contracts.ids import MessageId
from esper.errors import ContractError
from esper.services.oona.codec import DEAD_SUFFIX

UNREADABLE = "unreadable"
"""The type of an envelope that holds the raw fields of an entry that is no message."""

_REQUIRED = (b"type", b"version", b"id", b"sent_at", b"body")


def to_fields(envelope: Envelope) -> list[str | bytes]:
    """Return names and values by turns: a header that people can read, and the encoded body."""
    pairs: list[str | bytes] = ["type", envelope.type, "version", str(envelope.version), "id", envelope.id]
    pairs += ["sent_at", envelope.sent_at.isoformat()]
    if envelope.run_id is not None:
        pairs += ["run_id", envelope.run_id]
    if envelope.traceparent is not None:
        pairs += ["traceparent", envelope.traceparent]
    return [*pairs, "body", envelope.body]


def from_fields(at: bytes, pairs: Sequence[bytes]) -> Envelope:
    """Return the envelope in an entry; fields that are not known are passed over.

    Raises:
        ContractError: If the entry is no message of this library.
    """
    by_turns = iter(pairs)
    held = dict(zip(by_turns, by_turns, strict=True))
    try:
        run_id, trace = held.get(b"run_id"), held.get(b"traceparent")
        return Envelope(
            type=held[b"type"].decode(),
            version=int(held[b"version"]),
            id=MessageId(held[b"id"].decode()),
            run_id=None if run_id is None else run_id.decode(),
            sent_at=datetime.fromisoformat(held[b"sent_at"].decode()),
            traceparent=None if trace is None else trace.decode(),
            body=held[b"body"],
        )
    except KeyError:
        missing = ", ".join(name.decode() for name in _REQUIRED if name not in held)
        raise ContractError(f"entry {at.decode()} is no message", why=f"it lacks {missing}") from None
    except ValueError as error:
        raise ContractError(f"entry {at.decode()} is no message", why=str(error)) from error


def as_found(entry: str, pairs: Sequence[bytes], sent_at: datetime) -> Envelope:
    """Return an envelope around the raw fields of an entry that is no message, so that its dead letter can hold it."""
    return Envelope(
        type=UNREADABLE,
        version=1,
        id=MessageId(entry),
        run_id=None,
        sent_at=sent_at,
        traceparent=None,
        body=msgspec.msgpack.encode(list(pairs)),
    )


def key_of(stream: str) -> str:
    """Return the key of a stream: its name, but for dead letters, which share the hash slot of the stream they come from."""
    stem = stream.removesuffix(DEAD_SUFFIX)
    if stem == stream or _has_tag(stem):
        return stream
    return f"{{{stem}}}{DEAD_SUFFIX}"


def lost_key_of(key: str) -> str:
    """Return the key of what each group of a stream has lost to trimming, by the group's name."""
    return _beside(key, ":lost")


def seen_key_of(key: str) -> str:
    """Return the key of when each group of a stream was last known to have a member, by the group's name."""
    return _beside(key, ":seen")


def stream_of(key: str) -> str:
    """Return the stream whose key this is."""
    if key.startswith("{") and key.endswith("}" + DEAD_SUFFIX):
        return key.removesuffix("}" + DEAD_SUFFIX)[1:] + DEAD_SUFFIX
    return key


def named(pairs: object) -> dict[bytes, object]:
    """Return as names and values what Redis answers by turns."""
    held = cast("list[object]", pairs)
    return dict(zip(cast("list[bytes]", held[::2]), held[1::2], strict=True))


def order(at: bytes) -> tuple[int, int]:
    """Return a place in a stream so that it can be compared: milliseconds of the server's clock, and a number within them."""
    milliseconds, _, number = at.partition(b"-")
    return int(milliseconds), int(number)


def _has_tag(key: str) -> bool:
    """Whether Redis Cluster hashes a part of a key only: what stands between its first ``{`` and the next ``}``."""
    _, opened, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    return bool(opened and closed and tag)


def _beside(key: str, suffix: str) -> str:
    """Return a key in the hash slot of a stream's."""
    return key + suffix if _has_tag(key) else f"{{{key}}}{suffix}"
