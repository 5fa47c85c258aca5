"""Messages to bytes and back."""

import copy
import math
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from esper.contracts.adaptation import Action, AdaptationDecision, Outcome, Verdict
from esper.contracts.envelope import DeadLetter, Envelope
from esper.contracts.events import CompilationEvent
from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.topics import COMPILATIONS, DECISIONS, HEALTH, OUTCOMES
from esper.errors import ContractError
from esper.services.oona.codec import Codec, packed, unpacked
from esper.telemetry.tracing import traced, usable

FREE = "anything.at.all"
CODEC = Codec()
NOON = datetime(2026, 1, 2, 12, 0, 0, 250_000, tzinfo=UTC)


def travelled(message: object, stream: str = FREE) -> object:
    """Return a message after a journey over the wire."""
    return CODEC.open(unpacked(packed(CODEC.seal(stream, message))))  # type: ignore[arg-type]


PLAIN: dict[str, dict[str, object]] = {
    "nothing": {},
    "None": {"a": None},
    "truth values, which are no numbers": {"yes": True, "no": False, "one": 1, "zero": 0},
    "floats, which are no integers": {"a": 1.0, "b": -0.0, "c": 5e-324, "d": 1.7976931348623157e308},
    "integers of 64 bits": {"low": -(2**63), "high": 2**64 - 1},
    "bytes, which are no text": {"a": b"", "b": b"\x00\xff", "c": ""},
    "dotted keys": {"a.b": 1, "a": {"b": 2}, "": 3},
    "nesting": {"a": [{"b": [[], {}, [None]]}]},
    "text of every plane": {"ä": "漢\U0001f331\x00"},
    "a moment": {"at": NOON},
}


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_dictionary_arrives_equal_in_value_and_type(case: str) -> None:
    sent = PLAIN[case]
    before = copy.deepcopy(sent)
    found = travelled(sent)
    assert repr(found) == repr(before)
    assert found == before == sent
    assert found is not sent


def test_values_that_are_not_finite_arrive_as_they_are() -> None:
    found = travelled({"values": [math.inf, -math.inf, math.nan]})
    assert isinstance(found, dict)
    assert found["values"][:2] == [math.inf, -math.inf]
    assert math.isnan(found["values"][2])


def test_a_moment_of_another_zone_arrives_as_the_same_moment() -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    found = travelled({"at": elsewhere})
    assert found == {"at": NOON}


KEYS = st.text(max_size=5) | st.sampled_from(["a.b", ".", "a", "$", "type"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=True)
    | st.text()
    | st.binary()
    | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(sent=st.dictionaries(KEYS, VALUES, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_plain_dictionary_arrives_equal_and_is_never_changed(sent: dict[str, object]) -> None:
    before = copy.deepcopy(sent)
    assert travelled(sent) == before == sent


class Whole(int):
    """An integer that would arrive as a plain one."""


REFUSED: dict[str, tuple[object, str, str]] = {
    "a tuple": ({"a": (1, 2)}, "a tuple", "$.a"),
    "a set": ({"a": {1}}, "a set", "$.a"),
    "a key that is a number": ({"a": {1: "x"}}, "a key that is not text", "$.a.1"),
    "an integer of 65 bits": ({"a": 2**64}, "a int", "$.a"),
    "a negative one": ({"a": [0, -(2**63) - 1]}, "a int", "$.a[1]"),
    "a moment without a zone": ({"a": {"b": datetime(2026, 1, 2)}}, "a datetime", "$.a.b"),
    "an ordered dictionary": ({"a": OrderedDict()}, "a OrderedDict", "$.a"),
    "a subclass of int": ({"a": Whole(3)}, "a Whole", "$.a"),
    "an object": ({"a": object()}, "a object", "$.a"),
    "a complex number": ({"a": 1j}, "a complex", "$.a"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_arrive_as_something_else_is_refused_with_its_place(case: str) -> None:
    sent, what, path = REFUSED[case]
    with pytest.raises(ContractError) as refused:
        CODEC.seal(FREE, sent)  # type: ignore[arg-type]
    assert f"hold {what}" in refused.value.what
    assert refused.value.what.endswith(f"at {path}")


def nested(depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def test_nesting_has_a_limit_that_both_sides_can_read() -> None:
    assert travelled(nested(63)) == nested(63)
    with pytest.raises(ContractError, match="at most 64 deep"):
        CODEC.seal(FREE, nested(64))


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(ContractError):
        CODEC.seal(FREE, {"a": "\ud800"})


SIGNAL = HealthSignal(
    layer_id="fc", seed_idx=0, timestamp=NOON, metrics={"grad_norm": 0.25}, nonfinite=("ratio",), step=3
)
OUTCOME = Outcome(
    decision_id="d", run_id="r", slot="fc", seed_idx=0, blueprint="b", kernel_id="k", verdict=Verdict.CULLED, gain=None,
    gain_error=0.5, params=10, steps=4,
)  # fmt: skip
CONTRACTS: dict[str, msgspec.Struct | BaseModel] = {
    HEALTH.stream: HealthBatch(run_id="r", step=3, signals=(SIGNAL,)),
    COMPILATIONS.stream: CompilationEvent(blueprint_id="sha256:b", status="rejected", reason="why"),
    DECISIONS.stream: AdaptationDecision(action=Action.LOAD_KERNEL, target_layer="fc", kernel_id="k"),
    OUTCOMES.stream: OUTCOME,
}


@pytest.mark.parametrize("stream", CONTRACTS)
def test_a_contract_arrives_as_itself_on_its_stream_and_on_a_free_one(stream: str) -> None:
    for way in (stream, FREE):
        found = travelled(CONTRACTS[stream], way)
        assert type(found) is type(CONTRACTS[stream])
        assert found == CONTRACTS[stream]


@pytest.mark.parametrize("stream", CONTRACTS)
def test_a_dictionary_on_a_declared_stream_arrives_as_the_contract(stream: str) -> None:
    contract = CONTRACTS[stream]
    fields = contract.model_dump() if isinstance(contract, BaseModel) else msgspec.to_builtins(contract)
    assert travelled(fields, stream) == contract


class Stranger(msgspec.Struct):
    """A contract that no topic declares."""


class Outsider(BaseModel):
    """A model that no topic declares."""


SENDERS_FAULTS: dict[str, tuple[str, object, str]] = {
    "a contract on the stream of another": (HEALTH.stream, CONTRACTS[OUTCOMES.stream], "its contract is HealthBatch"),
    "a dictionary that lacks a field": (COMPILATIONS.stream, {"status": "started"}, "blueprint_id"),
    "a dictionary with a field of another type": (OUTCOMES.stream, {"decision_id": 3}, "decision_id"),
    "a contract that nobody declares": (FREE, Stranger(), "no topic declares that contract"),
    "a model that nobody declares": (FREE, Outsider(), "no topic declares that contract"),
}


@pytest.mark.parametrize("fault", SENDERS_FAULTS)
def test_a_message_that_breaks_its_contract_is_refused_at_the_sender(fault: str) -> None:
    stream, message, reason = SENDERS_FAULTS[fault]
    with pytest.raises(ContractError, match=reason):
        CODEC.seal(stream, message)  # type: ignore[arg-type]


def test_an_envelope_says_what_it_holds_when_and_for_whom() -> None:
    before = datetime.now(UTC)
    first = CODEC.seal(OUTCOMES.stream, OUTCOME, run_id="run-1")
    second = CODEC.seal(OUTCOMES.stream, OUTCOME)
    assert (first.type, first.version, first.run_id, second.run_id) == ("Outcome", 1, "run-1", None)
    assert before <= first.sent_at <= datetime.now(UTC)
    assert first.id != second.id
    assert CODEC.seal(FREE, {}).type == "dict"


def test_a_dead_letter_keeps_the_message_as_it_was_sent() -> None:
    letter = DeadLetter(stream=FREE, group="g", tries=3, reason="why", envelope=CODEC.seal(FREE, {"a": 1}))
    found = travelled(letter, f"{FREE}.dead")
    assert found == letter
    assert isinstance(found, DeadLetter)
    assert CODEC.open(found.envelope) == {"a": 1}


def sealed_as(*, type: str = "CompilationEvent", version: int = 1, body: object) -> Envelope:
    return Envelope(
        type=type, version=version, id="message-7", run_id=None, sent_at=NOON, traceparent=None,
        body=body if isinstance(body, bytes) else msgspec.msgpack.encode(body),
    )  # fmt: skip


@pytest.mark.parametrize("stream", CONTRACTS)
def test_fields_that_no_reader_would_see_are_refused_at_the_sender(stream: str) -> None:
    contract = CONTRACTS[stream]
    fields = contract.model_dump() if isinstance(contract, BaseModel) else msgspec.to_builtins(contract)
    with pytest.raises(ContractError, match=r"\$\.weather, which .* does not know"):
        CODEC.seal(stream, {**fields, "weather": "fair"})


def test_a_field_that_no_reader_would_see_is_refused_wherever_it_stands() -> None:
    fields = msgspec.to_builtins(CONTRACTS[HEALTH.stream])
    fields["signals"][0]["weather"] = "fair"
    with pytest.raises(ContractError, match=r"\$\.signals\[0\]\.weather"):
        CODEC.seal(HEALTH.stream, fields)


def test_a_message_belongs_to_the_trace_in_which_it_was_sent() -> None:
    context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with traced(context):
        assert CODEC.seal(FREE, {}).traceparent == context
        with traced(None):
            assert CODEC.seal(FREE, {}).traceparent is None
    assert CODEC.seal(FREE, {}).traceparent is None


@pytest.mark.parametrize(
    "context", ["", "00-1-2-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{'a' * 32}-{'b' * 16}-01"]
)
def test_what_is_no_trace_context_is_refused_at_the_sender_and_passed_over_at_the_reader(context: str) -> None:
    with pytest.raises(ContractError, match="no trace context"), traced(context):
        pass
    assert usable(context) is None


def test_fields_that_a_later_sender_added_are_passed_over() -> None:
    later = {"blueprint_id": "sha256:b", "status": "started", "weather": "fair"}
    assert CODEC.open(sealed_as(body=later)) == CompilationEvent(blueprint_id="sha256:b", status="started")


READERS_FAULTS: dict[str, tuple[Envelope, str]] = {
    "a version of the future": (sealed_as(version=2, body={}), "knows version 1 of CompilationEvent, not 2"),
    "a contract that is not known": (sealed_as(type="Weather", body={}), "knows version 0 of Weather"),
    "a body that lacks a field": (sealed_as(body={"status": "started"}), "blueprint_id"),
    "a body that is cut off": (sealed_as(body=b"\x82\xa1"), "truncated"),
    "plain data that are no dictionary": (sealed_as(type="dict", body=[1]), "Expected `object`"),
}


@pytest.mark.parametrize("fault", READERS_FAULTS)
def test_what_cannot_be_read_is_refused_with_the_id_of_the_message(fault: str) -> None:
    envelope, reason = READERS_FAULTS[fault]
    with pytest.raises(ContractError, match=reason) as refused:
        CODEC.open(envelope)
    assert "message-7" in refused.value.what


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", packed(sealed_as(body={}))[:-1]])
def test_bytes_that_are_no_envelope_are_refused(data: bytes) -> None:
    with pytest.raises(ContractError, match="no envelope"):
        unpacked(data)
