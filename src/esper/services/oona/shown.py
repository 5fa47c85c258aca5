"""Messages as a person or another program reads them."""

import math
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime

import msgspec

from esper.contracts.envelope import Envelope
from esper.services.oona.desk import GroupFigures, Letter, Passing, StreamFigures


def letter_to_json(letter: Letter) -> dict[str, object]:
    """Return a dead letter as an object for JSON."""
    told: dict[str, object] = {
        "id": letter.id,
        "stream": letter.grave.rpartition(".")[0],
        "place": letter.place,
        "buried_at": None if letter.buried_at is None else letter.buried_at.isoformat(),
    }
    if (content := letter.content) is None:
        return told | {"fault": letter.fault}
    return told | {
        "group": content.group,
        "tries": content.tries,
        "reason": content.reason,
        "history": [{"at": one.at.isoformat(), "reason": one.reason} for one in content.history],
        "message": envelope_to_json(content.envelope),
    }


def figures_to_json(figures: StreamFigures) -> dict[str, object]:
    """Return figures of a stream as an object for JSON; what is not known is null."""
    told: dict[str, object] = {
        "stream": figures.stream,
        "held": figures.held,
        "published": figures.published,
        "removed": figures.removed,
        "dead": figures.dead,
    }
    return told | {"groups": [_group_to_json(group) for group in figures.groups]}


def _group_to_json(group: GroupFigures) -> dict[str, object]:
    return {
        "group": group.group,
        "lag": group.lag,
        "depth": group.depth,
        "pending": group.pending,
        "oldest_pending_s": group.oldest_pending_s,
        "redelivered": group.redelivered,
        "lost": group.lost,
    }


def passing_to_json(passing: Passing) -> dict[str, object]:
    """Return a message as it passes as an object for JSON."""
    told: dict[str, object] = {"place": passing.place}
    if passing.envelope is None:
        return told | {"fault": passing.fault}
    return told | envelope_to_json(passing.envelope)


def envelope_to_json(envelope: Envelope) -> dict[str, object]:
    """Return a message with its header as an object for JSON."""
    return {
        "id": envelope.id,
        "type": envelope.type,
        "version": envelope.version,
        "run_id": envelope.run_id,
        "sent_at": envelope.sent_at.isoformat(),
        "body": body_of(envelope),
    }


def body_of(envelope: Envelope) -> object:
    """Return the body of a message as JSON can hold it, whether its contract is known here or not.

    Bytes become base64, times text, and numbers that are not finite their names.
    """
    try:
        return _plain(msgspec.msgpack.decode(envelope.body))
    except msgspec.DecodeError:
        return _plain(envelope.body)


def _plain(value: object) -> object:
    match value:
        case Mapping():
            return {str(key): _plain(held) for key, held in value.items()}
        case list() | tuple():
            return [_plain(held) for held in value]
        case bytes():
            return b64encode(value).decode()
        case datetime():
            return value.isoformat()
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case _:
            return value
