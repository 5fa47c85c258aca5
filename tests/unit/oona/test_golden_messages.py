"""Messages as they lie in streams and journals of earlier releases are read for ever.

Each file holds one packed envelope and what it says. Files are added, never changed; a new version of a contract adds one.
"""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from pydantic import BaseModel

from esper.contracts.envelope import DeadLetter
from esper.contracts.topics import TOPICS
from esper.errors import ContractError
from esper.services.oona.codec import Codec, packed, unpacked

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "messages"
FILES = sorted(GOLDEN.glob("*.json"))
CODEC = Codec()


def read(path: Path) -> tuple[bytes, bytes]:
    """Return the packed envelope of a file, and its message as JSON."""
    held = json.loads(path.read_text(encoding="utf-8"))
    return base64.b64decode(held["packed"]), json.dumps(held["message"]).encode()


def expected(name: str, text: bytes) -> object:
    """Return the message that a file says it holds."""
    if name == "dict":
        return json.loads(text)
    models: dict[str, type] = {"DeadLetter": DeadLetter, **{t.model.__name__: t.model for t in TOPICS.values()}}
    model = models[name]
    if issubclass(model, BaseModel):
        return model.model_validate_json(text)
    return msgspec.json.decode(text, type=model)


def test_every_version_of_every_contract_has_a_message() -> None:
    wanted = {f"{t.model.__name__}-{n}" for t in TOPICS.values() for n in range(1, t.version + 1)}
    assert {path.stem for path in FILES} >= wanted | {"DeadLetter-1", "dict-1"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_message_of_an_earlier_release_is_read_as_what_it_said(path: Path) -> None:
    data, text = read(path)
    envelope = unpacked(data)
    assert f"{envelope.type}-{envelope.version}" == path.stem
    assert (envelope.id, envelope.run_id) == ("message-1", "run-1")
    assert envelope.sent_at.isoformat() == "2026-01-02T12:00:00.250000+00:00"
    assert CODEC.open(envelope) == expected(envelope.type, text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_is_written_as_it_was_then(path: Path) -> None:
    data, _ = read(path)
    assert packed(unpacked(data)) == data


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_written_today_holds_all_that_was_written_then(path: Path) -> None:
    envelope = unpacked(read(path)[0])
    today = CODEC.seal("any.stream", CODEC.open(envelope)).body
    then, now = msgspec.msgpack.decode(envelope.body), msgspec.msgpack.decode(today)
    assert {name: now.get(name) for name in then} == then


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_damaged_message_is_refused(path: Path) -> None:
    data, _ = read(path)
    for length in range(len(data)):
        with pytest.raises(ContractError):
            unpacked(data[:length])


def test_values_that_json_does_not_have_are_read_as_they_were() -> None:
    data = (
        "h6R0eXBlpGRpY3SndmVyc2lvbgGiaWSpbWVzc2FnZS0xpnJ1bl9pZKVydW4tMadzZW50X2F01/87msoAaVezQKt0cmFjZXBhcmVu"
        "dMCkYm9kecRAhaRub25lwKFuz4AAAAAAAAAApXJhdGlvyz+5mZmZmZmaqmRvdHRlZC5rZXmSosOkxAEAomF01/87msoAaVezQA=="
    )
    noon = datetime(2026, 1, 2, 12, 0, 0, 250_000, tzinfo=UTC)
    said = {"none": None, "n": 2**63, "ratio": 0.1, "dotted.key": ["ä", b"\x00"], "at": noon}
    assert CODEC.open(unpacked(base64.b64decode(data))) == said
